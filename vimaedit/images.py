"""Pictures and masks as arrays: the model's canvas and the way back, encoding (`decoding` reads them).

Sizes are (width, height) as in PIL, shapes (height, width) as in numpy; a crop box is (left, top, right, bottom) in pixels of
the picture after EXIF rotation.
"""

from __future__ import annotations

import functools
import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vimaedit.config import FITS, check_choice
from vimaedit.errors import ConfigError, RequestError
from vimaedit.marks import mark_options
from vimaedit.types import BoolArray, UInt8Array

Size = tuple[int, int]
Box = tuple[int, int, int, int]

MAX_SIDE_PX = {"webp": 16_383, "jpeg": 65_500}  # what the file formats can hold
CODINGS: dict[str, dict[str, int | bool]] = {
    "png": {"compress_level": 1},
    "webp": {"lossless": True, "method": 0},
    "jpeg": {"quality": 95},
}
MAX_ASPECT = 4.0
AREA_TOLERANCE = 0.1  # how far a bucket's area may be from the square's
MAX_AREA_DEVIATION = 0.25  # ... where a width has none that near
MAX_CLIP_ASPECT = 16
SEAM_PX = 2  # of the canvas: a quarter of a latent's cell, the least that a mask is wide


@dataclass(frozen=True)
class CanvasSpec:
    """The model's canvas: `fit` as in `Canvas`, `size` its square side, `granularity` what sides are multiples of and `largest` the
    longest side that there may be (None: any), in px."""

    fit: str
    size: int
    granularity: int
    largest: int | None = None

    def __post_init__(self) -> None:
        check_choice("canvas.fit", self.fit, FITS)
        if self.granularity < 1 or self.size < 1 or self.size % self.granularity:
            raise ConfigError(f"canvas.size: got {self.size}; allowed: a multiple of the model's {self.granularity} px")
        if self.largest is not None and self.size > self.largest:
            raise ConfigError(
                f"canvas.size: got {self.size}; allowed: up to {self.largest} px, the longest side that this model takes"
            )

    def canvas_of(self, size: Size) -> Size:
        """Return the canvas (width, height) of a picture of this size.

        `crop` has one square; `keep` takes the nearest bucket by the logarithm of the aspect, of those that the model takes.
        """
        if self.fit == "crop":
            return self.size, self.size
        aspect = math.log(size[0] / size[1])
        buckets = aspect_buckets(self.size, self.granularity)
        taken = [bucket for bucket in buckets if self.largest is None or max(bucket) <= self.largest]
        return min(taken, key=lambda b: abs(math.log(b[0] / b[1]) - aspect))


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedImage:
    """A picture on the canvas: `image` (height, width, 3) uint8, the part of the upright original it shows, the original's size,
    the EXIF orientation in which that was stored, and whether its mark says that a model has drawn it."""

    image: UInt8Array
    crop_box: Box
    size: Size
    orientation: int = 1
    is_generated: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedPicture:
    """All that an edit reads of a picture: it on the canvas, as the image encoder sees it, and its mask.

    Shapes: `clip_image` (side, side, 3) uint8; `mask` (height, width) bool in the canvas frame.
    """

    fitted: FittedImage
    clip_image: UInt8Array
    mask: BoolArray | None


@functools.cache
def aspect_buckets(size: int, granularity: int) -> tuple[Size, ...]:
    """List the canvases of `canvas.fit=keep` as (width, height), widest last.

    Sides are multiples of `granularity`, aspects up to 4:1; to every bucket belongs its transpose. Areas are within a tenth of
    size**2; a width that has no such height takes the nearest area within a quarter. Sides move in steps of about size / 8, so
    that a run sees few shapes, and every aspect occurs once, with the area nearest to size**2. The square is `size` itself.
    """
    step = granularity * max(1, round(size / 8 / granularity))
    area = size**2

    def deviation(bucket: Size) -> float:
        return abs(bucket[0] * bucket[1] / area - 1)

    best: dict[float, Size] = {1.0: (size, size)}
    for width in range(step, int(size * math.sqrt(MAX_ASPECT)) + 1, step):
        column = [(width, height) for height in range(step, 2 * size + 1, step)]
        column = [bucket for bucket in column if max(bucket) <= MAX_ASPECT * min(bucket)]
        close = [bucket for bucket in column if deviation(bucket) <= AREA_TOLERANCE] or [min(column, key=deviation)]
        for bucket in (bucket for bucket in close if deviation(bucket) <= MAX_AREA_DEVIATION):
            for each in (bucket, bucket[::-1]):
                aspect = each[0] / each[1]
                best[aspect] = min(best.get(aspect, each), each, key=deviation)
    return tuple(best[aspect] for aspect in sorted(best))


def fit_image(image: UInt8Array, spec: CanvasSpec, orientation: int = 1) -> FittedImage:
    """Bring a picture (height, width, 3) to the model's canvas: crop, then resize (bicubic).

    The canvas is covered by the picture: with `crop` it shows the centre square. What is already a canvas stays as it is.
    """
    height, width = image.shape[:2]
    canvas = spec.canvas_of((width, height))
    # The largest centred part with the canvas's aspect.
    crop_width = max(1, min(width, round(height * canvas[0] / canvas[1])))
    crop_height = max(1, min(height, round(width * canvas[1] / canvas[0])))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    box = (left, top, left + crop_width, top + crop_height)
    fitted = resize(_cut(image, box), canvas)
    return FittedImage(image=fitted, crop_box=box, size=(width, height), orientation=orientation)


def fit_picture(
    image: UInt8Array, mask: BoolArray | None, spec: CanvasSpec, clip_side: int, orientation: int = 1
) -> FittedPicture:
    """Bring an upright picture and its mask to the model's canvas; the one place where that is done.

    Shapes: `image` (height, width, 3), `mask` (any, any).
    """
    fitted = fit_image(image, spec, orientation)
    if mask is not None:
        mask = fit_mask(mask, fitted.size, fitted.crop_box, fitted.image.shape[:2])
    return FittedPicture(fitted=fitted, clip_image=clip_view(image, clip_side), mask=mask)


def fit_mask(mask: BoolArray, original_size: Size, crop_box: Box, canvas_shape: tuple[int, ...]) -> BoolArray:
    """Bring a mask to a canvas of (height, width): stretched over the whole original picture, then cropped like it (nearest).

    Shapes: `mask` (any, any); returns (height, width).
    """
    left, top, right, bottom = crop_box
    columns = _nearest(
        left + _nearest(np.arange(canvas_shape[1]), canvas_shape[1], right - left), original_size[0], mask.shape[1]
    )
    rows = _nearest(top + _nearest(np.arange(canvas_shape[0]), canvas_shape[0], bottom - top), original_size[1], mask.shape[0])
    fitted: BoolArray = mask[np.ix_(rows, columns)]
    return fitted


def clip_view(image: UInt8Array, side: int) -> UInt8Array:
    """Return what the image encoder sees, (side, side, 3): the short side resized (bicubic), then the centre square.

    The pixels are those of the PIL-backed CLIP image processor; of a picture longer than 16 times its width, whose resized
    form could be of any size, only the middle is resized.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    if max(height, width) > MAX_CLIP_ASPECT * short:
        crop_width, crop_height = min(width, MAX_CLIP_ASPECT * short), min(height, MAX_CLIP_ASPECT * short)
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        image = _cut(image, (left, top, left + crop_width, top + crop_height))
        height, width = image.shape[:2]
    long = int(side * max(height, width) / short)
    size = (side, long) if width <= height else (long, side)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return np.ascontiguousarray(_cut(resize(image, size), (left, top, left + side, top + side)))


def paste_back(
    original: UInt8Array, edited: UInt8Array, mask: BoolArray | None, crop_box: Box, paste: str = "mask"
) -> UInt8Array:
    """Return the original with the edited canvas (bicubic) in its crop box.

    `paste=mask`: only where the canvas mask is (None: all of it), blended with the original within `SEAM_PX` of the mask's edge,
    on the inside; every other pixel is the original's. `paste=frame`: the whole canvas.

    Shapes: `original` (height, width, 3), `edited` (any, any, 3), `mask` (any, any); returns (height, width, 3).
    """
    left, top, right, bottom = crop_box
    pasted, patch = original.copy(), resize(edited, (right - left, bottom - top))
    if paste == "mask":
        height, width = original.shape[:2]
        whole = np.ones(edited.shape[:2], dtype=np.bool_) if mask is None else mask
        seam = max(1, round(SEAM_PX * max((right - left) / edited.shape[1], (bottom - top) / edited.shape[0])))
        weight = _cut(_seam_weights(paste_mask(whole, (width, height), crop_box), seam), crop_box)
        below = Image.fromarray(np.ascontiguousarray(_cut(original, crop_box)))
        patch = np.array(Image.composite(Image.fromarray(patch), below, Image.fromarray(np.ascontiguousarray(weight))))
    pasted[top:bottom, left:right] = patch
    return pasted


def _seam_weights(mask: BoolArray, seam: int) -> UInt8Array:
    """Return how much of the edit stands in each pixel, 0 to 255: none outside the mask, all of it `seam` pixels inside."""
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(seam))
    weights = np.array(blurred.point([max(0, 2 * level - 255) for level in range(256)]))
    weights[~mask] = 0
    return weights


def paste_mask(mask: BoolArray, original_size: Size, crop_box: Box) -> BoolArray:
    """Return a canvas mask in the frame of the original (nearest), False outside the crop box.

    Shapes: `mask` (any, any); returns (original height, original width).
    """
    left, top, right, bottom = crop_box
    pasted = np.zeros((original_size[1], original_size[0]), dtype=np.bool_)
    rows = _nearest(np.arange(bottom - top), bottom - top, mask.shape[0])
    columns = _nearest(np.arange(right - left), right - left, mask.shape[1])
    pasted[top:bottom, left:right] = mask[np.ix_(rows, columns)]
    return pasted


def change_mask(source: UInt8Array, edited: UInt8Array, threshold: float) -> BoolArray:
    """Return where two pictures differ: the mean difference of the channels, of 1, averaged over a neighbourhood of a 32nd of the shorter
    side, above the threshold.

    Shapes: `source`, `edited` (height, width, 3); returns (height, width).
    """
    difference = np.abs(source.astype(np.int16) - edited).mean(axis=-1).round().astype(np.uint8)
    radius = max(1, min(difference.shape) // 64)
    smooth = Image.fromarray(difference).filter(ImageFilter.BoxBlur(radius))
    mask: BoolArray = np.asarray(smooth) > threshold * 255
    return mask


def encode_image(image: UInt8Array, image_format: str, mark: bytes | None = None) -> bytes:
    """Encode a picture (height, width, 3) as `png` (level 1), lossless `webp` or `jpeg` (quality 95), with its mark (`marks`).

    Raises: RequestError `image_too_wide` where the format cannot hold it.
    """
    height, width = image.shape[:2]
    limit = MAX_SIDE_PX.get(image_format)
    if limit is not None and max(height, width) > limit:
        raise RequestError(
            "image_too_wide",
            field="image_format",
            got=f"{image_format} for {width}x{height} px",
            allowed=f"up to {limit} px a side, or image_format=png",
        )
    buffer = io.BytesIO()
    options = {} if mark is None else mark_options(mark, image_format)
    Image.fromarray(image).save(buffer, format=image_format, **CODINGS[image_format], **options)
    return buffer.getvalue()


def encode_mask(mask: BoolArray) -> bytes:
    """Encode a mask (height, width) as PNG of mode L, 0 or 255."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, format="png", compress_level=1)
    return buffer.getvalue()


def _cut(image: UInt8Array, box: Box) -> UInt8Array:
    left, top, right, bottom = box
    return image[top:bottom, left:right]


def resize(image: UInt8Array, size: Size) -> UInt8Array:
    """Return a picture (height, width, 3) at another size (bicubic)."""
    if image.shape[1::-1] == size:
        return image.copy()
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BICUBIC))


def _nearest(index: NDArray[np.int64], length: int, other_length: int) -> NDArray[np.int64]:
    """Return which of `other_length` pixels lies under the centre of pixel `index` of `length`, both over the same span."""
    return (2 * index + 1) * other_length // (2 * length)
