"""Pictures and masks as arrays: decoding, the model's canvas and the way back, encoding.

Sizes are (width, height) as in PIL, shapes (height, width) as in numpy; a crop box is (left, top, right, bottom) in pixels of
the picture after EXIF rotation.
"""

from __future__ import annotations

import functools
import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vimaedit.config import FITS, check_choice
from vimaedit.errors import ConfigError, RequestError
from vimaedit.types import BoolArray, UInt8Array

Size = tuple[int, int]
Box = tuple[int, int, int, int]

# `decode_image` and `decode_mask` check the pixel count themselves, from the header and with the run's own limit; PIL's guard
# would warn below that limit, in crops too.
Image.MAX_IMAGE_PIXELS = None

MIN_SIDE_PX = 16
MAX_PIXELS = 100_000_000
READABLE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
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

EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, *, min_side_px: int = 1, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Decode a picture of any mode to RGB: the first frame, EXIF rotation applied, alpha composited on white.

    16-bit grey is scaled to 8 bits. Shapes: returns (height, width, 3).

    Raises: RequestError `image_empty`, `image_undecodable`, `image_too_small`, `image_too_large`, `image_depth`.
    """
    return _to_rgb(_load(data, field="image", min_side_px=min_side_px, max_pixels=max_pixels))


def decode_mask(data: bytes, *, max_pixels: int = MAX_PIXELS) -> BoolArray:
    """Decode a mask of any mode: True where any colour channel is not 0; alpha does not count. Returns (height, width).

    Raises: RequestError as `decode_image`, with the field `given_mask`.
    """
    image = _load(data, field="given_mask", min_side_px=1, max_pixels=max_pixels)
    if not _is_deep(image) and image.mode != "1":
        # By way of RGBA: a palette's transparency is dropped with its channel.
        image = _convert(image, "RGBA" if image.has_transparency_data else "RGB", "given_mask")
    values = np.atleast_3d(np.asarray(image))[..., :3]
    mask: BoolArray = (values != 0).any(axis=-1)
    return mask


def read_picture(picture: Image.Image | UInt8Array | bytes | str | PathLike[str]) -> UInt8Array:
    """Return a picture given as a PIL image, an array, encoded bytes or a local file as an RGB array (height, width, 3).

    Raises: RequestError as `decode_image` with its default limits, `image_missing`, `image_shape`.
    """
    if isinstance(picture, str | PathLike):
        path = Path(picture)
        if not path.is_file():
            raise RequestError("image_missing", field="image", got=repr(str(picture)), allowed="a file that exists")
        picture = path.read_bytes()
    if isinstance(picture, bytes):
        return decode_image(picture, min_side_px=MIN_SIDE_PX, max_pixels=MAX_PIXELS)
    if isinstance(picture, Image.Image):
        _check_size(picture.size, "image", MIN_SIDE_PX, MAX_PIXELS)
        return _to_rgb(_upright(picture))
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise RequestError(
            "image_shape", field="image", got=f"{picture.dtype} {picture.shape}", allowed="uint8 (height, width, 3)"
        )
    _check_size((picture.shape[1], picture.shape[0]), "image", MIN_SIDE_PX, MAX_PIXELS)
    return picture


def _load(data: bytes, *, field: str, min_side_px: int, max_pixels: int) -> Image.Image:
    if not data:
        raise RequestError(f"{_kind(field)}_empty", field=field, got="0 bytes", allowed="an encoded picture")
    try:
        with _without_pillows_warnings():
            image = Image.open(io.BytesIO(data), formats=READABLE_FORMATS)
    except MemoryError:
        raise
    except Exception as error:
        raise _undecodable(data, field, error) from error
    _check_size(image.size, field, min_side_px, max_pixels)
    try:
        with _without_pillows_warnings():
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they stumble over
        raise _undecodable(data, field, error) from error
    return _upright(image)


@contextmanager
def _without_pillows_warnings() -> Iterator[None]:
    """Keep Pillow from warning of broken metadata: that is no reason to refuse a picture, nor one for a line per picture."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        yield


def _check_size(size: Size, field: str, min_side_px: int, max_pixels: int) -> None:
    got = f"{size[0]}x{size[1]} px"
    if size[0] * size[1] > max_pixels:
        allowed = f"up to {max_pixels} pixels (max_pixels)"
        raise RequestError(f"{_kind(field)}_too_large", field=field, got=got, allowed=allowed)
    if min(size) < min_side_px:
        allowed = f"sides of at least {min_side_px} px (min_side_px)"
        raise RequestError(f"{_kind(field)}_too_small", field=field, got=got, allowed=allowed)


def _kind(field: str) -> str:
    return field.removeprefix("given_")


def _undecodable(data: bytes, field: str, error: Exception) -> RequestError:
    reason = "no picture format known here" if isinstance(error, UnidentifiedImageError) else str(error).strip() or repr(error)
    return RequestError(
        f"{_kind(field)}_undecodable",
        field=field,
        got=f"{len(data)} bytes: {reason}",
        allowed=f"a whole {', '.join(READABLE_FORMATS[:-1])} or {READABLE_FORMATS[-1]} file",
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        with _without_pillows_warnings():
            orientation = image.getexif().get(EXIF_ORIENTATION)
            turn = None if orientation is None else UPRIGHT.get(orientation)
    except Exception:  # broken metadata of a sound picture
        return image
    return image if turn is None else image.transpose(turn)


def _is_deep(image: Image.Image) -> bool:
    """Whether the samples have more than 8 bits (one channel then)."""
    return image.mode == "F" or image.mode.startswith("I")


def _to_rgb(image: Image.Image) -> UInt8Array:
    if _is_deep(image):
        grey = np.asarray(image)
        if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
            raise RequestError(
                "image_depth", field="image", got=f"32-bit samples (mode {image.mode})", allowed="8 or 16 bits per sample"
            )
        level = ((grey.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(level[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = _convert(image, "RGBA", "image")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(_convert(image, "RGB", "image"))


def _convert(image: Image.Image, mode: str, field: str) -> Image.Image:
    try:
        return image.convert(mode)
    except MemoryError:
        raise
    except Exception as error:  # the mode is none that can be converted, or its palette or transparency is broken
        got = f"colours of mode {image.mode}"
        raise RequestError(f"{_kind(field)}_undecodable", field=field, got=got, allowed="grey, palette, RGB or CMYK") from error


@dataclass(frozen=True)
class CanvasSpec:
    """The model's canvas: `fit` as in `Canvas`, `size` its square side and `granularity` what sides are multiples of, in px."""

    fit: str
    size: int
    granularity: int

    def __post_init__(self) -> None:
        check_choice("canvas.fit", self.fit, FITS)
        if self.granularity < 1 or self.size < 1 or self.size % self.granularity:
            raise ConfigError(f"canvas.size: got {self.size}; allowed: a multiple of the model's {self.granularity} px")

    def canvas_of(self, size: Size) -> Size:
        """Return the canvas (width, height) of a picture of this size.

        `crop` has one square; `keep` takes the nearest bucket by the logarithm of the aspect.
        """
        if self.fit == "crop":
            return self.size, self.size
        aspect = math.log(size[0] / size[1])
        return min(aspect_buckets(self.size, self.granularity), key=lambda b: abs(math.log(b[0] / b[1]) - aspect))


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedImage:
    """A picture on the canvas: `image` (height, width, 3) uint8, the part of the original it shows, and the original's size."""

    image: UInt8Array
    crop_box: Box
    size: Size


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


def fit_image(image: UInt8Array, spec: CanvasSpec) -> FittedImage:
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
    return FittedImage(image=_resize(_cut(image, box), canvas), crop_box=box, size=(width, height))


def fit_picture(image: UInt8Array, mask: BoolArray | None, spec: CanvasSpec, clip_side: int) -> FittedPicture:
    """Bring a picture and its mask to the model's canvas; the one place where that is done.

    Shapes: `image` (height, width, 3), `mask` (any, any).
    """
    fitted = fit_image(image, spec)
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
    return np.ascontiguousarray(_cut(_resize(image, size), (left, top, left + side, top + side)))


def paste_back(original: UInt8Array, edited: UInt8Array, crop_box: Box) -> UInt8Array:
    """Return the original with its crop box replaced by the edited canvas (bicubic); nothing outside it changes.

    Shapes: `original` (height, width, 3), `edited` (any, any, 3); returns (height, width, 3).
    """
    left, top, right, bottom = crop_box
    pasted = original.copy()
    pasted[top:bottom, left:right] = _resize(edited, (right - left, bottom - top))
    return pasted


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


def encode_image(image: UInt8Array, image_format: str) -> bytes:
    """Encode a picture (height, width, 3) as `png` (level 1), lossless `webp` or `jpeg` (quality 95).

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
    Image.fromarray(image).save(buffer, format=image_format, **CODINGS[image_format])
    return buffer.getvalue()


def encode_mask(mask: BoolArray) -> bytes:
    """Encode a mask (height, width) as PNG of mode L, 0 or 255."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, format="png", compress_level=1)
    return buffer.getvalue()


def _cut(image: UInt8Array, box: Box) -> UInt8Array:
    left, top, right, bottom = box
    return image[top:bottom, left:right]


def _resize(image: UInt8Array, size: Size) -> UInt8Array:
    if image.shape[1::-1] == size:
        return image.copy()
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BICUBIC))


def _nearest(index: NDArray[np.int64], length: int, other_length: int) -> NDArray[np.int64]:
    """Return which of `other_length` pixels lies under the centre of pixel `index` of `length`, both over the same span."""
    return (2 * index + 1) * other_length // (2 * length)
