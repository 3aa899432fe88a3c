"""Decoding, the canvas and the way back, against PIL, the CLIP image processor and the recorded inputs."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.coded import LIMITS, encoded, picture
from vimaedit.decoding import decode_image, read_picture
from vimaedit.errors import ConfigError, RequestError
from vimaedit.images import (
    CanvasSpec,
    aspect_buckets,
    clip_view,
    encode_image,
    encode_mask,
    fit_image,
    fit_mask,
    paste_back,
    paste_mask,
)
from vimaedit.mask_decoding import decode_mask


@pytest.mark.parametrize(("name", "case"), [("img_b", "dpm10_noblend_insert"), ("img_c", "ddim10_delete_sgs2")])
def test_crop_reproduces_the_recorded_inputs(name: str, case: str, oracle: Path) -> None:
    original = read_picture(oracle / "cases" / "inputs" / f"{name}.png").pixels
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
    with pytest.raises(
        ConfigError, match=r"^canvas.size: got 512; allowed: up to 448 px, the longest side that this model takes$"
    ):
        CanvasSpec(fit="crop", size=512, granularity=64, largest=448)


def test_no_canvas_is_longer_than_the_model_takes() -> None:
    wide = CanvasSpec(fit="keep", size=512, granularity=64, largest=640)
    assert (
        max(wide.canvas_of((4000, 1000))) == 640 < max(CanvasSpec(fit="keep", size=512, granularity=64).canvas_of((4000, 1000)))
    )
    assert wide.canvas_of((1000, 1000)) == (512, 512)


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


def test_paste_back_of_the_frame_touches_the_crop_box_only() -> None:
    original, edited, box = picture(29, 53), picture(31, 37, seed=1), (12, 0, 41, 23)
    before = original.copy()
    pasted = paste_back(original, edited, np.zeros((31, 37), bool), box, "frame")
    np.testing.assert_array_equal(original, before)
    expected = Image.fromarray(original)
    expected.paste(Image.fromarray(edited).resize((29, 23), Image.Resampling.BICUBIC), (12, 0))
    np.testing.assert_array_equal(pasted, np.asarray(expected))
    np.testing.assert_array_equal(paste_back(original, original[0:23, 12:41], None, box, "frame"), original)


@pytest.mark.parametrize("scale", [0.5, 1, 3])
def test_paste_back_by_the_mask_leaves_every_other_pixel(scale: float) -> None:
    side = round(64 * scale)
    original, edited = picture(side + 9, side + 20), np.full((64, 64, 3), 255, np.uint8)
    original //= 2
    box = (11, 5, 11 + side, 5 + side)
    mask = np.zeros((64, 64), bool)
    mask[16:48, 8:40] = True
    mask[60:62, 60:62] = True  # thinner than the seam
    pasted = paste_back(original, edited, mask, box)
    inside = paste_mask(mask, original.shape[1::-1], box)
    np.testing.assert_array_equal(pasted[~inside], original[~inside])
    whole = paste_mask(np.pad(np.ones((22, 22), bool), ((21, 21), (13, 29))), original.shape[1::-1], box)
    np.testing.assert_array_equal(pasted[whole], 255)
    # From the mask's edge on the edit comes in by and by.
    row = 5 + side // 2
    steps = np.diff(pasted[row, 11 + round(8 * scale) - 1 : 11 + round(16 * scale), 0].astype(int) - original[row, 30, 0])
    assert (steps >= -2).all() and steps.max() < 160


def test_without_a_mask_the_whole_canvas_is_pasted_with_a_seam_where_the_picture_goes_on() -> None:
    original, edited = np.zeros((40, 60, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8)
    pasted = paste_back(original, edited, None, (10, 0, 50, 40))
    assert not pasted[:, :10].any() and not pasted[:, 50:].any()
    assert (pasted[:, 15:45] == 255).all()  # up to the picture's own borders
    assert 0 < pasted[20, 10, 0] < pasted[20, 11, 0] < 255


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
