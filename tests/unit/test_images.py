"""Decoding, the canvas and the way back, against PIL, the CLIP image processor and the recorded inputs."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vimaedit.errors import ConfigError, RequestError
from vimaedit.images import (
    CanvasSpec,
    aspect_buckets,
    clip_view,
    decode_image,
    decode_mask,
    encode_image,
    encode_mask,
    fit_image,
    fit_mask,
    paste_back,
    paste_mask,
    read_picture,
)

LIMITS = {"min_side_px": 5, "max_pixels": 100_000_000}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture: its resized pixels are neither flat nor noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Image.Image, image_format: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(picture(13, 17)).convert(mode)
    decoded = decode_image(encoded(image, "tiff"), **LIMITS)
    assert decoded.shape == (13, 17, 3) and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode: str) -> None:
    image = Image.fromarray(picture(7, 11)).convert(mode)
    image.putalpha(Image.fromarray(np.tile(np.array([0] * 5 + [255] * 6, dtype=np.uint8), (7, 1))))
    decoded = decode_image(encoded(image), **LIMITS)
    np.testing.assert_array_equal(decoded[:, :5], 255)
    np.testing.assert_array_equal(decoded[:, 5:], np.asarray(image.convert("RGB"))[:, 5:])


def test_palette_transparency_is_composited_on_white() -> None:
    image = Image.fromarray(np.tile(np.arange(7, dtype=np.uint8), (5, 1))).convert("P")
    image.putpalette([0, 90, 200] * 256)
    data = encoded(image, transparency=bytes([255, 255, 0, 255]))
    decoded = decode_image(data, **LIMITS)
    np.testing.assert_array_equal(decoded[:, 2], 255)
    np.testing.assert_array_equal(decoded[:, [0, 1, 3, 4, 5, 6]], np.broadcast_to([0, 90, 200], (5, 6, 3)))


def test_sixteen_bit_grey_is_scaled() -> None:
    levels = np.linspace(0, 65535, 7 * 11).round().astype(np.uint16).reshape(7, 11)
    decoded = decode_image(encoded(Image.fromarray(levels)), **LIMITS)
    expected = np.round(levels / 257).astype(np.uint8)
    np.testing.assert_array_equal(decoded, np.repeat(expected[..., None], 3, axis=-1))


@pytest.mark.parametrize(
    ("values", "mode"), [(np.full((7, 11), 0.5, np.float32), "F"), (np.full((7, 11), 70_000, np.int32), "I")]
)
def test_deeper_samples_are_rejected(values: np.ndarray, mode: str) -> None:
    with pytest.raises(RequestError) as error:
        decode_image(encoded(Image.fromarray(values), "tiff"), **LIMITS)
    assert error.value.code == "image_depth"
    assert str(error.value) == f"image: got 32-bit samples (mode {mode}); allowed: 8 or 16 bits per sample"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["png", "tiff", "webp"])
def test_exif_rotation_is_applied(orientation: int, image_format: str) -> None:
    upright = picture(11, 17)
    # How a camera held so would have stored it, by the definition of where row 0 and column 0 lie.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if image_format == "webp" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), image_format, exif=exif, **options)
    np.testing.assert_array_equal(decode_image(data, **LIMITS), upright)


def test_broken_exif_leaves_the_picture_as_stored() -> None:
    data = encoded(Image.fromarray(picture(11, 17)), "jpeg", quality=95, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert decode_image(data, **LIMITS).shape == (11, 17, 3)


@pytest.mark.parametrize("value", [[3, 3], {}, b"6", "6", 2.0**70])
def test_an_orientation_of_another_type_turns_nothing(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(picture(11, 17)))
    monkeypatch.setattr(Image.Image, "getexif", lambda image: {0x0112: value})
    np.testing.assert_array_equal(decode_image(data, **LIMITS), picture(11, 17))


def test_colours_that_cannot_be_converted_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(image: Image.Image, mode: str) -> Image.Image:
        raise ValueError(f"conversion from {image.mode} to {mode} not supported")

    data = encoded(Image.fromarray(picture(17, 19)).convert("RGBA"))
    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(RequestError) as error:
        decode_image(data, **LIMITS)
    assert error.value.code == "image_undecodable"
    assert str(error.value) == "image: got colours of mode RGBA; allowed: grey, palette, RGB or CMYK"
    with pytest.raises(
        RequestError, match=r"^given_mask: got colours of mode RGBA; allowed: grey, palette, RGB or CMYK$"
    ) as error:
        decode_mask(data)
    assert error.value.code == "mask_undecodable"


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (13, 7), colour) for colour in ("#ff0000", "#0000ff")]
    data = encoded(frames[0], "gif", save_all=True, append_images=frames[1:], duration=100)
    np.testing.assert_array_equal(decode_image(data, **LIMITS), np.broadcast_to([255, 0, 0], (7, 13, 3)))


def test_what_is_no_picture_is_rejected() -> None:
    formats = "AVIF, BMP, GIF, JPEG, JPEG2000, PNG, PPM, TIFF or WEBP"
    with pytest.raises(RequestError) as error:
        decode_image(b"not a picture", **LIMITS)
    assert error.value.code == "image_undecodable"
    assert str(error.value) == f"image: got 13 bytes: no picture format known here; allowed: a whole {formats} file"
    with pytest.raises(RequestError) as error:
        decode_image(b"", **LIMITS)
    assert error.value.code == "image_empty"
    assert str(error.value) == "image: got 0 bytes; allowed: an encoded picture"
    with pytest.raises(RequestError, match=r"^given_mask: got 0 bytes; allowed: an encoded picture$"):
        decode_mask(b"")


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp", "gif", "bmp", "tiff"])
def test_truncated_files_are_rejected(image_format: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (53, 47, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), image_format)
    for kept in (len(data) // 2, 11):
        with pytest.raises(RequestError, match=f"^image: got {kept} bytes: .+; allowed: a whole AVIF") as error:
            decode_image(data[:kept], **LIMITS)
        assert error.value.code == "image_undecodable"


def test_sizes_are_checked_before_decoding() -> None:
    data = encoded(Image.fromarray(picture(13, 17)))
    header_only = data[:41]
    with pytest.raises(RequestError) as error:
        decode_image(header_only, min_side_px=5, max_pixels=13 * 17 - 1)
    assert error.value.code == "image_too_large"
    assert str(error.value) == "image: got 17x13 px; allowed: up to 220 pixels (max_pixels)"
    with pytest.raises(RequestError) as error:
        decode_image(header_only, min_side_px=14, max_pixels=13 * 17)
    assert error.value.code == "image_too_small"
    assert str(error.value) == "image: got 17x13 px; allowed: sides of at least 14 px (min_side_px)"
    with pytest.raises(RequestError) as error:
        decode_mask(header_only, max_pixels=220)
    assert error.value.code == "mask_too_large"
    assert decode_image(data, min_side_px=13, max_pixels=13 * 17).shape == (13, 17, 3)


@pytest.mark.parametrize(("width", "height", "readable"), [(9_700, 9_743, True), (20_011, 20_011, False)])
def test_pillows_own_limit_neither_warns_nor_raises(width: int, height: int, readable: bool) -> None:
    # Beyond Pillow's warning at 89 million pixels, and beyond its error at twice that; warnings are errors here.
    data = encoded(Image.new("1", (width, height)))
    if readable:
        assert decode_mask(data).shape == (height, width)
    else:
        with pytest.raises(RequestError, match=r"^image: got 20011x20011 px; allowed: up to 100000000 pixels \(max_pixels\)$"):
            decode_image(data, **LIMITS)


def test_read_picture_takes_files_bytes_pil_and_arrays(tmp_path: Path) -> None:
    array = picture(17, 23)
    data = encoded(Image.fromarray(array))
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    for form in (path, str(path), data, Image.fromarray(array), array):
        np.testing.assert_array_equal(read_picture(form), array)


def test_read_picture_rejects_what_is_none(tmp_path: Path) -> None:
    missing = tmp_path / "missing.png"
    with pytest.raises(RequestError) as error:
        read_picture(missing)
    assert error.value.code == "image_missing"
    assert str(error.value) == f"image: got {str(missing)!r}; allowed: a file that exists"
    for array in (np.zeros((17, 19), np.uint8), np.zeros((17, 19, 3), np.float32), np.zeros((17, 19, 4), np.uint8)):
        with pytest.raises(RequestError) as error:
            read_picture(array)
        assert error.value.code == "image_shape"
        assert str(error.value) == f"image: got {array.dtype} {array.shape}; allowed: uint8 (height, width, 3)"
    for form in (picture(13, 17), Image.fromarray(picture(13, 17))):
        with pytest.raises(RequestError, match=r"got 17x13 px; allowed: sides of at least 16 px"):
            read_picture(form)


@pytest.mark.parametrize(("name", "case"), [("img_b", "dpm10_noblend_insert"), ("img_c", "ddim10_delete_sgs2")])
def test_crop_reproduces_the_recorded_inputs(name: str, case: str, oracle: Path) -> None:
    original = read_picture(oracle / "cases" / "inputs" / f"{name}.png")
    with np.load(oracle / "cases" / f"{case}.npz") as arrays:
        recorded = arrays["image"]
    fitted = fit_image(original, CanvasSpec(fit="crop", size=512, granularity=64))
    np.testing.assert_array_equal(fitted.image, recorded)


def test_crop_takes_the_centre_square_with_floor_offset() -> None:
    fitted = fit_image(picture(29, 53), CanvasSpec(fit="crop", size=32, granularity=8))
    assert fitted.crop_box == (12, 0, 41, 29)
    assert fit_image(picture(31, 22), CanvasSpec(fit="crop", size=32, granularity=8)).crop_box == (0, 4, 22, 26)


@pytest.mark.parametrize(("size", "granularity"), [(512, 64), (512, 8), (128, 32), (128, 8), (1024, 64), (520, 8), (8, 8)])
def test_aspect_buckets(size: int, granularity: int) -> None:
    buckets = aspect_buckets(size, granularity)
    assert (size, size) in buckets
    assert all(width % granularity == height % granularity == 0 for width, height in buckets)
    tolerance = 0.1 if size % 512 == 0 else 0.25  # the sides of smaller canvases are coarser
    assert all(abs(width * height / size**2 - 1) <= tolerance for width, height in buckets)
    assert all(max(bucket) <= 4 * min(bucket) for bucket in buckets)
    assert {(height, width) for width, height in buckets} == set(buckets)
    aspects = [width / height for width, height in buckets]
    assert aspects == sorted(set(aspects))
    assert len(buckets) <= 23
    if size >= 128:
        assert aspects[-1] >= 3.5
        assert max(math.log(b / a) for a, b in zip(aspects, aspects[1:], strict=False)) < math.log(1.81)


def test_buckets_of_the_common_canvas() -> None:
    assert aspect_buckets(512, 64)[9:] == (
        *((512, 512), (576, 448), (640, 448), (640, 384), (704, 384)),
        *((768, 320), (832, 320), (896, 320), (960, 256), (1024, 256)),
    )


@pytest.mark.parametrize(
    ("width", "height", "canvas", "crop_box"),
    [
        (640, 448, (640, 448), (0, 0, 640, 448)),
        (448, 640, (448, 640), (0, 0, 448, 640)),
        (600, 400, (640, 448), (14, 0, 585, 400)),
        (1920, 1080, (704, 384), (0, 16, 1920, 1063)),
        (384, 600, (384, 640), (12, 0, 372, 600)),
        (601, 599, (512, 512), (1, 0, 600, 599)),
        (2003, 17, (1024, 256), (967, 0, 1035, 17)),
        (17, 2003, (256, 1024), (0, 967, 17, 1035)),
    ],
)
def test_keep_covers_the_nearest_bucket(
    width: int, height: int, canvas: tuple[int, int], crop_box: tuple[int, int, int, int]
) -> None:
    original = picture(height, width)
    fitted = fit_image(original, CanvasSpec(fit="keep", size=512, granularity=64))
    assert fitted.crop_box == crop_box
    expected = Image.fromarray(original).crop(crop_box).resize(canvas, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(fitted.image, np.asarray(expected))


@pytest.mark.parametrize("fit", ["crop", "keep"])
def test_fitting_a_canvas_changes_nothing(fit: str) -> None:
    spec = CanvasSpec(fit=fit, size=128, granularity=32)
    for width, height in aspect_buckets(128, 32) if fit == "keep" else [(128, 128)]:
        canvas = picture(height, width)
        fitted = fit_image(canvas, spec)
        np.testing.assert_array_equal(fitted.image, canvas)
        assert fitted.crop_box == (0, 0, width, height)


def test_impossible_canvases_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^canvas.size: got 500; allowed: a multiple of the model's 64 px$"):
        CanvasSpec(fit="crop", size=500, granularity=64)
    with pytest.raises(ConfigError, match=r"^canvas.fit: got 'stretch'; allowed: crop, keep$"):
        CanvasSpec(fit="stretch", size=512, granularity=64)


@pytest.mark.parametrize("mask_size", [(29, 53), (7, 5), (101, 97)])
def test_fit_mask_is_stretched_over_the_original_and_cropped_like_it(mask_size: tuple[int, int]) -> None:
    mask = np.random.default_rng(2).random(mask_size) < 0.4
    box, nearest = (12, 0, 41, 29), Image.Resampling.NEAREST
    whole = Image.fromarray(mask).resize((53, 29), nearest)
    expected = np.asarray(whole.crop(box).resize((37, 31), nearest))
    np.testing.assert_array_equal(fit_mask(mask, (53, 29), box, (31, 37)), expected)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (449, 641), (601, 383), (17, 271), (23, 19), (31, 37)])
@pytest.mark.parametrize("side", [32, 224])
def test_clip_view_has_the_pixels_of_the_clip_processor(height: int, width: int, side: int) -> None:
    image = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_rescale=False, do_normalize=False
    )
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    np.testing.assert_array_equal(clip_view(image, side), expected)


def test_clip_view_of_a_very_long_picture_is_its_middle() -> None:
    image = picture(17, 20_011)
    view = clip_view(image, 31)
    assert view.shape == (31, 31, 3)
    middle = image[:, 20_011 // 2 - 8 : 20_011 // 2 + 9].astype(int)
    assert abs(int(view.mean()) - middle.mean()) < 3


def test_paste_back_touches_the_crop_box_only() -> None:
    original, edited, box = picture(29, 53), picture(31, 37, seed=1), (12, 0, 41, 23)
    before = original.copy()
    pasted = paste_back(original, edited, box)
    np.testing.assert_array_equal(original, before)
    expected = Image.fromarray(original)
    expected.paste(Image.fromarray(edited).resize((29, 23), Image.Resampling.BICUBIC), (12, 0))
    np.testing.assert_array_equal(pasted, np.asarray(expected))
    np.testing.assert_array_equal(paste_back(original, original[0:23, 12:41], box), original)


def test_paste_mask_is_false_outside_the_crop_box() -> None:
    mask = np.random.default_rng(4).random((31, 37)) < 0.5
    pasted = paste_mask(mask, (53, 29), (12, 2, 41, 25))
    expected = Image.new("1", (53, 29))
    expected.paste(Image.fromarray(mask).resize((29, 23), Image.Resampling.NEAREST), (12, 2))
    np.testing.assert_array_equal(pasted, np.asarray(expected))


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_lossless_formats_return_the_same_pixels(image_format: str) -> None:
    image = np.random.default_rng(5).integers(0, 256, (29, 31, 3), dtype=np.uint8)
    data = encode_image(image, image_format)
    assert Image.open(io.BytesIO(data)).format == image_format.upper()
    np.testing.assert_array_equal(decode_image(data, **LIMITS), image)
    assert encode_image(image, image_format) == data


def test_jpeg_is_of_quality_95() -> None:
    image = picture(53, 59)
    data = encode_image(image, "jpeg")
    assert data == encoded(Image.fromarray(image), "jpeg", quality=95)
    assert np.abs(decode_image(data, **LIMITS).astype(int) - image).mean() < 3


@pytest.mark.parametrize(("image_format", "limit"), [("webp", 16_383), ("jpeg", 65_500)])
def test_formats_refuse_what_they_cannot_hold(image_format: str, limit: int) -> None:
    with pytest.raises(RequestError) as error:
        encode_image(np.zeros((2, limit + 1, 3), np.uint8), image_format)
    assert error.value.code == "image_too_wide"
    assert str(error.value) == (
        f"image_format: got {image_format} for {limit + 1}x2 px; allowed: up to {limit} px a side, or image_format=png"
    )
    widest = encode_image(np.zeros((2, limit, 3), np.uint8), image_format)
    assert decode_image(widest, min_side_px=1, max_pixels=10**6).shape == (2, limit, 3)


def test_masks_are_png_of_mode_l() -> None:
    mask = np.random.default_rng(6).random((13, 11)) < 0.5
    data = encode_mask(mask)
    stored = Image.open(io.BytesIO(data))
    assert (stored.format, stored.mode) == ("PNG", "L")
    np.testing.assert_array_equal(np.asarray(stored), np.where(mask, 255, 0))
    np.testing.assert_array_equal(decode_mask(data), mask)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "I", "F"])
def test_masks_of_any_mode(mode: str) -> None:
    mask = np.random.default_rng(7).random((7, 11)) < 0.5
    grey = Image.fromarray(mask.astype(np.uint8) * (255 if mode == "1" else 1))
    image = Image.fromarray(mask.astype(np.uint16)) if mode == "I;16" else grey.convert(mode)
    assert image.mode == mode
    if mode in ("RGBA", "LA"):  # alpha says nothing: transparent where it edits, opaque elsewhere
        image.putalpha(Image.fromarray(np.where(mask, 0, 255).astype(np.uint8)))
    np.testing.assert_array_equal(decode_mask(encoded(image, "tiff" if mode in ("I", "F") else "png")), mask)


def test_a_mask_in_one_colour_channel_counts() -> None:
    colours = np.zeros((5, 7, 3), dtype=np.uint8)
    colours[2, 3, 2] = 1
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(colours))), colours.any(axis=-1))
