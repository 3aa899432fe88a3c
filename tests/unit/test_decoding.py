"""Decoding: what a coded picture or mask means, and what is said of it where that is not as it stands."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests import profiles
from tests.coded import LIMITS, encoded, picture
from vimaedit.decoding import decode_image, decode_whole, read_picture
from vimaedit.errors import RequestError
from vimaedit.mask_decoding import decode_holes, decode_mask, decode_whole_mask, read_mask, turn_mask


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


def progressive(scans: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """A JPEG whose last scan stands there so many more times: refinements of nothing, a few bytes each."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    end, last = data.rindex(b"\xff\xd9"), data.rindex(b"\xff\xda")
    return data[:end] + data[last:end] * scans + data[end:]


def test_a_jpeg_of_absurdly_many_scans_is_refused_before_it_is_decoded() -> None:
    usual, absurd = progressive(30), progressive(3000, (4096, 4096))
    assert decode_whole(usual).pixels.shape == (64, 64, 3)
    started = time.process_time()
    with pytest.raises(RequestError, match=r"^image: got a JPEG of 30\d\d scans; allowed: up to 100 scans$") as refused:
        decode_whole(absurd)
    assert refused.value.code == "image_too_slow"
    with pytest.raises(RequestError, match="^given_mask: got a JPEG of") as refused:
        decode_whole_mask(absurd)
    assert refused.value.code == "mask_too_slow" and time.process_time() - started < 1


def test_scans_of_thumbnails_and_further_pictures_are_not_counted() -> None:
    data, many = progressive(0), progressive(99)
    thumbnail = b"\xff\xe1" + (len(many) + 2).to_bytes(2, "big") + many
    assert decode_whole(data[:2] + thumbnail + data[2:] + many).pixels.shape == (64, 64, 3)


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
        np.testing.assert_array_equal(read_picture(form).pixels, array)


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


def codes(warnings: tuple[str, ...]) -> list[str]:
    return [warning.partition(":")[0] for warning in warnings]


@pytest.mark.parametrize(
    ("image_format", "options"),
    [("png", {}), ("jpeg", {"quality": 100, "subsampling": 0}), ("webp", {"lossless": True}), ("tiff", {})],
)
def test_a_profile_is_converted_to_srgb(image_format: str, options: dict[str, Any]) -> None:
    data = encoded(Image.new("RGB", (16, 16), (200, 30, 30)), image_format, icc_profile=profiles.display_p3(), **options)
    decoded = decode_whole(data, **LIMITS)
    assert np.abs(decoded.pixels.astype(int) - (218, 0, 6)).max() <= (3 if image_format == "jpeg" else 0)
    assert decoded.warnings == ()


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1"])
def test_a_profile_of_colours_counts_in_every_mode(mode: str) -> None:
    image = Image.new("RGB", (16, 16), (200, 30, 30)).convert(mode)
    if mode == "P":
        image.putpalette([200, 30, 30] * 256)
    expected = np.asarray(image.convert("RGB"))  # grey stays grey
    if mode in ("RGBA", "P"):
        expected = np.broadcast_to((218, 0, 6), (16, 16, 3))
    decoded = decode_whole(encoded(image, icc_profile=profiles.display_p3()), **LIMITS)
    np.testing.assert_array_equal(decoded.pixels, expected)
    assert decoded.warnings == ()


def test_alpha_survives_a_profile() -> None:
    image = Image.new("RGBA", (16, 16), (200, 30, 30, 0))
    image.paste((200, 30, 30, 255), (0, 0, 8, 16))
    pixels = decode_image(encoded(image, icc_profile=profiles.display_p3()), **LIMITS)
    np.testing.assert_array_equal(pixels[:, :8], np.broadcast_to((218, 0, 6), (16, 8, 3)))
    np.testing.assert_array_equal(pixels[:, 8:], 255)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_with_a_profile(mode: str) -> None:
    image = (
        Image.new("L", (16, 16), 128).convert(mode)
        if mode != "I;16"
        else Image.fromarray(np.full((16, 16), 128 * 257, np.uint16))
    )
    decoded = decode_whole(encoded(image, icc_profile=profiles.linear_grey()), **LIMITS)
    assert decoded.warnings == () and np.abs(decoded.pixels.astype(int) - 188).max() <= 1


@pytest.mark.parametrize("image_format", ["jpeg", "tiff"])
def test_inks_with_a_profile(image_format: str) -> None:
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    image.paste((0, 0, 0, 0), (8, 0, 16, 16))
    decoded = decode_whole(encoded(image, image_format, icc_profile=profiles.odd_press()), **LIMITS)
    assert decoded.warnings == ()
    assert np.abs(decoded.pixels[4, 2].astype(int) - profiles.CYAN_INK).max() <= 6
    assert decoded.pixels[4, 13].min() >= 252


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", b"broken"),
        ("RGB", profiles.display_p3()[:200]),
        ("RGB", profiles.odd_press()),
        ("RGB", profiles.linear_grey()),
        ("CMYK", profiles.display_p3()),
    ],
)
def test_a_profile_that_cannot_be_used_is_told_of_and_ignored(mode: str, profile: bytes) -> None:
    image = Image.fromarray(picture(16, 16)).convert(mode)
    decoded = decode_whole(encoded(image, "tiff", icc_profile=profile), **LIMITS)
    assert codes(decoded.warnings) == ["profile_unreadable"] and "sRGB is assumed" in decoded.warnings[0]
    np.testing.assert_array_equal(decoded.pixels, np.asarray(image.convert("RGB")))


def test_srgb_with_or_without_its_profile_is_left_as_it_is() -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (31, 29, 3), dtype=np.uint8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for options in ({}, {"icc_profile": profile}):
        np.testing.assert_array_equal(decode_image(encoded(image, **options), **LIMITS), np.asarray(image))


def test_a_pil_image_keeps_its_profile() -> None:
    image = Image.open(io.BytesIO(encoded(Image.new("RGB", (16, 16), (200, 30, 30)), icc_profile=profiles.display_p3())))
    np.testing.assert_array_equal(read_picture(image).pixels, np.broadcast_to((218, 0, 6), (16, 16, 3)))


@pytest.mark.parametrize("image_format", ["gif", "webp", "png", "tiff", "avif"])
def test_further_frames_are_told_of(image_format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("#ff0000", "#0000ff")]
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
    assert codes(decode_whole(data, **LIMITS).warnings) == ["first_frame_only"]
    assert "first_frame_only" in codes(decode_whole_mask(data).warnings)
    assert decode_whole(encoded(frames[0], image_format), **LIMITS).warnings == ()


@pytest.mark.parametrize(("top", "is_dark"), [(1023, True), (4095, True), (16383, True), (16384, False), (65535, False)])
@pytest.mark.parametrize("image_format", ["png", "tiff"])
def test_fewer_bits_in_sixteen_are_told_of(top: int, is_dark: bool, image_format: str) -> None:
    levels = np.linspace(0, top, 16 * 16).round().astype(np.uint16).reshape(16, 16)
    warnings = decode_whole(encoded(Image.fromarray(levels), image_format), **LIMITS).warnings
    assert codes(warnings) == (["dark_16_bit"] if is_dark else [])
    assert not is_dark or f"the largest sample is {top} of 65535" in warnings[0]


def png_of_deep_colours(levels: np.ndarray) -> bytes:
    """Code (height, width, 3) of 16 bits, which Pillow cannot write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = levels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_fewer_bits_in_sixteen_of_colours_are_told_of() -> None:
    levels = np.linspace(0, 4095, 16 * 16 * 3).round().astype(np.uint16).reshape(16, 16, 3)
    warnings = decode_whole(png_of_deep_colours(levels), **LIMITS).warnings
    assert codes(warnings) == ["dark_16_bit"] and "under 4096 of 65535" in warnings[0]
    assert decode_whole(png_of_deep_colours(levels * 16), **LIMITS).warnings == ()


SHAPE = np.zeros((24, 32), bool)
SHAPE[4:15, 8:21] = True


def two_greys(black: int, white: int) -> Image.Image:
    return Image.fromarray(np.where(SHAPE, white, black).astype(np.uint8))


def of_alpha(colour: int) -> Image.Image:
    image = Image.new("RGBA", (32, 24), (colour, colour, colour, 0))
    image.putalpha(two_greys(0, 255))
    return image


def of_palette(*colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(SHAPE.astype(np.uint8)).convert("P")
    image.putpalette([level for colour in colours for level in colour])
    return image


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(two_greys(0, 255), id="black and white"),
        pytest.param(two_greys(0, 1), id="0 and 1"),
        pytest.param(two_greys(1, 255), id="black stored as 1"),
        pytest.param(two_greys(1, 2), id="labels"),
        pytest.param(Image.fromarray(np.where(SHAPE, 65535, 1).astype(np.uint16)), id="black stored as 1 of 16 bits"),
        pytest.param(of_alpha(0), id="black with alpha"),
        pytest.param(of_alpha(255), id="white with alpha"),
        pytest.param(of_palette((128, 128, 128), (255, 255, 255)), id="palette of grey and white"),
        pytest.param(of_palette((128, 128, 128), (255, 0, 0)), id="palette of grey and red"),
        pytest.param(of_palette((128, 128, 128), (128, 0, 0)), id="palette of grey and dark red"),
        pytest.param(of_palette((0, 0, 0), (255, 255, 0)), id="palette of black and yellow"),
    ],
)
def test_masks_of_two_levels_mark_the_same(image: Image.Image) -> None:
    decoded = decode_whole_mask(encoded(image))
    np.testing.assert_array_equal(decoded.pixels, SHAPE)
    assert decoded.warnings == ()
    np.testing.assert_array_equal(read_mask(image).pixels, SHAPE)


def test_a_mask_as_jpeg_is_cut_at_half_of_white() -> None:
    decoded = decode_whole_mask(encoded(two_greys(0, 255), "jpeg", quality=60))
    assert (decoded.pixels != SHAPE).mean() < 0.01
    assert codes(decoded.warnings) == ["mask_not_black_and_white"]


def test_a_soft_mask_tells_how_much_is_neither_black_nor_white() -> None:
    levels = np.where(SHAPE, 255, 0).astype(np.uint8)
    levels[0, :23] = 127
    levels[1, 0] = 128
    expected = SHAPE.copy()
    expected[1, 0] = True
    decoded = decode_whole_mask(encoded(Image.fromarray(levels)), field="reference_mask")
    np.testing.assert_array_equal(decoded.pixels, expected)
    assert decoded.warnings == (
        "mask_not_black_and_white: 3.1% of the samples of reference_mask are neither, half of white is the border",
    )


@pytest.mark.parametrize(
    ("level", "warning"), [(0, "mask_covers_nothing"), (255, "mask_covers_everything"), (1, "mask_covers_everything")]
)
def test_masks_of_one_level_are_told_of(level: int, warning: str) -> None:
    decoded = decode_whole_mask(encoded(two_greys(level, level)))
    assert codes(decoded.warnings) == [warning] and (decoded.pixels == (level > 0)).all()


@pytest.mark.parametrize("scale", [1.0, 255, 4095, 65535])
def test_arrays_of_any_scale_are_masks(scale: float) -> None:
    levels = np.where(SHAPE, scale, 0.0)
    np.testing.assert_array_equal(read_mask(levels).pixels, SHAPE)
    levels[0, 0] = scale * 0.4
    np.testing.assert_array_equal(read_mask(levels).pixels, SHAPE)
    levels[0, 1] = np.nan
    np.testing.assert_array_equal(read_mask(levels).pixels, SHAPE)
    np.testing.assert_array_equal(read_mask(SHAPE).pixels, SHAPE)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_drawn_on_the_stored_pixels_is_turned_with_the_picture(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.where(SHAPE, 255, 0).astype(np.uint8)), exif=exif)
    upright = decode_whole(data, **LIMITS)
    size = (upright.pixels.shape[1], upright.pixels.shape[0])
    assert (upright.orientation, size) == (orientation, (24, 32))
    turned, warnings = turn_mask(SHAPE, size, orientation)
    np.testing.assert_array_equal(turned, upright.pixels[..., 0] > 0)
    assert codes(warnings) == ["mask_turned"]
    kept, warnings = turn_mask(turned, size, orientation)
    np.testing.assert_array_equal(kept, turned)
    assert warnings == ()


def test_a_mask_that_fits_both_ways_is_taken_upright_and_told_of() -> None:
    for size, orientation in (((32, 24), 3), ((24, 24), 6)):
        mask, warnings = turn_mask(SHAPE[: size[1], : size[0]], size, orientation)
        assert codes(warnings) == ["mask_not_turned"] and mask.shape == size[::-1]


@pytest.mark.parametrize("size", [(32, 24), (64, 48), (16, 12), (1000, 750), (1001, 750), (43, 32)])
def test_masks_of_the_pictures_aspect_fit(size: tuple[int, int]) -> None:
    assert turn_mask(SHAPE, size, 1) == (SHAPE, ())


def test_a_mask_of_another_aspect_is_rejected() -> None:
    with pytest.raises(RequestError) as error:
        turn_mask(SHAPE, (24, 32), 1)
    assert error.value.code == "mask_aspect"
    assert str(error.value) == "given_mask: got 32x24 px for a picture of 24x32 px; allowed: any size of the picture's aspect"
    with pytest.raises(RequestError, match="^reference_mask: got 32x24 px for a picture of 512x512 px"):
        turn_mask(SHAPE, (512, 512), 6, "reference_mask")


def test_holes_of_a_picture_are_what_is_not_opaque() -> None:
    colours = np.full((3, 4, 4), 255, np.uint8)
    colours[..., :3] = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    with pytest.raises(RequestError, match="reference_mask: got an opaque picture; allowed: one that is transparent in places"):
        decode_holes(encoded(Image.fromarray(colours)))
    colours[1, 2:, 3] = 0, 254
    assert np.argwhere(decode_holes(encoded(Image.fromarray(colours))).pixels).tolist() == [[1, 2], [1, 3]]


@pytest.mark.parametrize("transparency", [None, b"\0\0"])
def test_a_palette_that_is_not_there_is_said(transparency: bytes | None) -> None:
    data = png_of(3, b"\1" * 32, [] if transparency is None else [(b"tRNS", transparency)])
    for decode in (decode_whole, decode_whole_mask):
        with pytest.raises(RequestError, match="undecodable|it has colours of a palette, and no palette"):
            decode(data)


@pytest.mark.parametrize(
    ("chunks", "stated"),
    [
        ([(b"gAMA", struct.pack(">I", 45455))], None),
        ([(b"gAMA", struct.pack(">I", 100000))], "a gamma of 1"),
        ([(b"gAMA", struct.pack(">I", 100000)), (b"sRGB", b"\0")], None),
        ([(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))], None),
        ([(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))], "other primaries"),
    ],
)
def test_colours_that_a_png_states_without_a_profile_are_told_of(chunks: list[tuple[bytes, bytes]], stated: str | None) -> None:
    decoded = decode_whole(png_of(2, b"\x28\x80\xc0" * 32, chunks))
    assert codes(decoded.warnings) == ([] if stated is None else ["colours_assumed"])
    assert stated is None or f"the file states {stated} without" in decoded.warnings[0]
    assert decoded.pixels[0, 0].tolist() == [0x28, 0x80, 0xC0]


def png_of(colour: int, row: bytes, chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Write a PNG of 32 equal rows of 8 bits a sample, with chunks before its pixels."""
    head = (b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, colour, 0, 0, 0))
    whole = [head, *chunks, (b"IDAT", zlib.compress((b"\0" + row) * 32)), (b"IEND", b"")]
    coded = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in whole]
    return b"\x89PNG\r\n\x1a\n" + b"".join(coded)
