"""Coded pictures and masks -> arrays: upright, in sRGB, with a word on everything that is not as it stands in the file.

Sizes are (width, height) as in PIL, shapes (height, width) as in numpy.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from vimaedit.errors import RequestError
from vimaedit.images import Size
from vimaedit.marks import is_generated
from vimaedit.types import BoolArray, UInt8Array

# The pixel count is checked here, from the header and with the run's own limit; PIL's guard would warn below that limit, in
# crops too.
Image.MAX_IMAGE_PIXELS = None

MIN_SIDE_PX = 16
MAX_PIXELS = 100_000_000
READABLE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

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
SWAPPED = frozenset({5, 6, 7, 8})  # orientations that exchange width and height

MAX_SCANS = 100  # of a JPEG, as libtiff allows inside of TIFF; progressive ones usually have ten, and some sixty
JPEG_START, JPEG_END, SCAN = b"\xff\xd8", b"\xd9", b"\xff\xda"
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # what stands between data of scans, beside those that restart them
JPEG_ALONE = (b"\x01", b"\xd8")  # markers without a segment
DEEP_LEVEL = 65535
DARK_LEVEL = 2**14  # 16-bit samples that stay below use at most 14 bits: a picture of 10, 12 or 14 bits, shown nearly black
MASK_SCALES = (1, 255, 4095, DEEP_LEVEL)  # the full scales that samples of more than 8 bits may have
PROFILES_KEPT = 4  # transforms of the last profiles
SAME_LEVEL = 1  # a profile that moves no colour by more is sRGB
PROFILE_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}

Picture = Image.Image | UInt8Array | bytes | str | PathLike[str]


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedImage:
    """A picture (height, width, 3), upright and in sRGB; the EXIF orientation in which it is stored, 1 for upright; whether its mark
    says that a model has drawn it; and what to
    know of it, each warning with its code in front."""

    pixels: UInt8Array
    orientation: int = 1
    is_generated: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedMask:
    """A mask (height, width), True = edit, and what to know of it."""

    pixels: BoolArray
    warnings: tuple[str, ...] = ()


def decode_image(data: bytes, *, min_side_px: int = 1, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Decode a picture as `decode_whole` does, for those who have no use for its warnings. Returns (height, width, 3)."""
    return decode_whole(data, min_side_px=min_side_px, max_pixels=max_pixels).pixels


def decode_whole(data: bytes, *, min_side_px: int = 1, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode a picture of any mode to sRGB: the first frame, by its ICC profile, EXIF rotation applied, alpha on white.

    16-bit grey is scaled to 8 bits. Warnings: `first_frame_only`, `profile_unreadable`, `dark_16_bit`.

    Raises: RequestError `image_empty`, `image_undecodable`, `image_too_small`, `image_too_large`, `image_too_slow` (a JPEG of absurdly
    many scans), `image_depth`.
    """
    return _decoded(*_load(data, field="image", min_side_px=min_side_px, max_pixels=max_pixels))


def decode_mask(data: bytes, *, max_pixels: int = MAX_PIXELS) -> BoolArray:
    """Decode a mask as `decode_whole_mask` does, for those who have no use for its warnings. Returns (height, width)."""
    return decode_whole_mask(data, max_pixels=max_pixels).pixels


def decode_whole_mask(data: bytes, *, max_pixels: int = MAX_PIXELS, field: str = "given_mask") -> DecodedMask:
    """Decode a mask of any mode.

    A pixel's level is that of its largest colour channel, or its alpha where alpha alone varies. Of two levels the higher marks
    what is edited; of more, those above half of full scale. A palette whose colours tell nothing apart marks by its indices, 0
    for what is not edited. Warnings: `mask_covers_everything`, `mask_covers_nothing`, `mask_not_black_and_white`,
    `first_frame_only`.

    Raises: RequestError as `decode_whole`, with the field.
    """
    image, notes = _load(data, field=field, min_side_px=1, max_pixels=max_pixels)
    return _marked(_upright(image)[0], field, notes)


def decode_holes(data: bytes, *, max_pixels: int = MAX_PIXELS, field: str = "reference_mask") -> DecodedMask:
    """Decode a mask that is a picture with holes: what is not opaque is edited.

    Raises: RequestError as `decode_whole`, with the field; `mask_without_holes` for a picture that has none.
    """
    image, notes = _load(data, field=field, min_side_px=1, max_pixels=max_pixels)
    image = _upright(image)[0]
    if not image.has_transparency_data or (alpha := np.asarray(_convert(image, "RGBA", field))[..., 3]).min() == 255:
        raise RequestError(
            "mask_without_holes", field=field, got="an opaque picture", allowed="one that is transparent in places"
        )
    return DecodedMask(pixels=alpha < 255, warnings=tuple(notes))


def read_picture(picture: Picture) -> DecodedImage:
    """Return a picture given as a PIL image, an array, encoded bytes or a local file.

    Raises: RequestError as `decode_whole` with its default limits, `image_missing`, `image_shape`.
    """
    opened = _opened(picture, "image")
    if isinstance(opened, bytes):
        return decode_whole(opened, min_side_px=MIN_SIDE_PX, max_pixels=MAX_PIXELS)
    if isinstance(opened, Image.Image):
        _check_size(opened.size, "image", MIN_SIDE_PX, MAX_PIXELS)
        return _decoded(opened, _notes(opened, "image"))
    if opened.dtype != np.uint8 or opened.ndim != 3 or opened.shape[2] != 3:
        got = f"{opened.dtype} {opened.shape}"
        raise RequestError("image_shape", field="image", got=got, allowed="uint8 (height, width, 3)")
    _check_size((opened.shape[1], opened.shape[0]), "image", MIN_SIDE_PX, MAX_PIXELS)
    return DecodedImage(pixels=opened)


def read_mask(mask: Picture | BoolArray) -> DecodedMask:
    """Return a mask given as a picture may be, or as an array (height, width) or (height, width, channels) of any type.

    Raises: RequestError as `decode_whole_mask`, `mask_missing`, `mask_shape`.
    """
    opened = _opened(mask, "given_mask")
    if isinstance(opened, bytes):
        return decode_whole_mask(opened)
    if isinstance(opened, Image.Image):
        return _marked(_upright(opened)[0], "given_mask", _notes(opened, "given_mask"))
    if opened.ndim not in (2, 3) or not opened.size:
        raise RequestError("mask_shape", field="mask", got=f"an array of shape {opened.shape}", allowed="(height, width)")
    return _mark_samples(np.atleast_3d(opened)[..., :3].max(axis=-1), "given_mask", [])


def turn_mask(mask: BoolArray, size: Size, orientation: int, field: str = "given_mask") -> tuple[BoolArray, tuple[str, ...]]:
    """Return a mask as it lies over an upright picture of `size` (width, height) that was stored in an EXIF orientation, with
    what to know: one that fits the picture only as it was stored is turned with it.

    A mask may be of any size of the picture's aspect, up to a pixel.

    Raises: RequestError `mask_aspect`.
    """
    shape = (mask.shape[1], mask.shape[0])
    if _same_aspect(shape, size):
        if orientation == 1 or (orientation in SWAPPED and not _same_aspect(shape, size[::-1])):
            return mask, ()
        return mask, (
            f"mask_not_turned: {field} fits the picture before and after its EXIF rotation ({orientation}), and is taken upright",
        )
    if orientation in SWAPPED and _same_aspect(shape, size[::-1]):
        turned = np.asarray(Image.fromarray(mask).transpose(UPRIGHT[orientation]))
        return turned, (f"mask_turned: {field} fits the picture as it is stored, and is turned with it (EXIF {orientation})",)
    raise RequestError(
        "mask_aspect",
        field=field,
        got=f"{shape[0]}x{shape[1]} px for a picture of {size[0]}x{size[1]} px",
        allowed="any size of the picture's aspect",
    )


def _same_aspect(first: Size, second: Size) -> bool:
    """Whether one is the other scaled, sides rounded."""
    return abs(first[0] * second[1] - first[1] * second[0]) <= max(*first, *second)


def _opened(picture: Any, field: str) -> Any:
    """Return the bytes of a picture that is a local file, and any other as it is.

    Raises: RequestError where there is none.
    """
    if not isinstance(picture, str | PathLike):
        return picture
    path = Path(picture)
    if not path.is_file():
        raise RequestError(f"{_kind(field)}_missing", field=field, got=repr(str(picture)), allowed="a file that exists")
    return path.read_bytes()


def _load(data: bytes, *, field: str, min_side_px: int, max_pixels: int) -> tuple[Image.Image, list[str]]:
    """Open and decode a picture as it is stored; return it with what to know of its file."""
    if not data:
        raise RequestError(f"{_kind(field)}_empty", field=field, got="0 bytes", allowed="an encoded picture")
    try:
        with _without_pillows_warnings():
            image: Image.Image = Image.open(io.BytesIO(data), formats=READABLE_FORMATS)
    except MemoryError:
        raise
    except Exception as error:
        raise _undecodable(data, field, error) from error
    _check_size(image.size, field, min_side_px, max_pixels)
    _check_scans(data, field)
    notes = _notes(image, field)
    is_cut = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) and not _is_deep(image)
    try:
        with _without_pillows_warnings():
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they stumble over
        raise _undecodable(data, field, error) from error
    if is_cut and field == "image":  # colours of 16 bits, of which Pillow has kept the upper 8
        top = max(high for _, high in _extrema(image)[: 1 if image.mode == "LA" else 3])
        if top < DARK_LEVEL >> 8:
            notes.append(_dark(f"under {(top + 1) << 8}"))
    return image, notes


def _extrema(image: Image.Image) -> tuple[tuple[int, int], ...]:
    found: Any = image.getextrema()
    return found if isinstance(found[0], tuple) else (found,)


def _notes(image: Image.Image, field: str) -> list[str]:
    try:
        with _without_pillows_warnings():
            has_more = bool(getattr(image, "is_animated", False))
    except Exception:  # a broken second frame of a sound first one
        has_more = True
    return [f"first_frame_only: {field} has further frames or pages, which are left out"] if has_more else []


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


def _check_scans(data: bytes, field: str) -> None:
    """Refuse a JPEG of more scans than any program writes: each goes over all its pixels, and takes a few bytes of the file."""
    if data.startswith(JPEG_START) and data.count(SCAN) > MAX_SCANS and (scans := _count_scans(data)) > MAX_SCANS:
        got, allowed = f"a JPEG of {scans} scans", f"up to {MAX_SCANS} scans"
        raise RequestError(f"{_kind(field)}_too_slow", field=field, got=got, allowed=allowed)


def _count_scans(data: bytes) -> int:
    """Count the scans of a JPEG's first picture; those of thumbnails stand inside other segments."""
    scans, position = 0, len(JPEG_START)
    while found := JPEG_MARKER.search(data, position):
        marker, position = found[0][-1:], found.end()
        if marker == JPEG_END:
            break
        if marker not in JPEG_ALONE:
            scans += marker == SCAN[-1:]
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return scans


def _kind(field: str) -> str:
    return field.rpartition("_")[2]


def _undecodable(data: bytes, field: str, error: Exception) -> RequestError:
    reason = "no picture format known here" if isinstance(error, UnidentifiedImageError) else str(error).strip() or repr(error)
    return RequestError(
        f"{_kind(field)}_undecodable",
        field=field,
        got=f"{len(data)} bytes: {reason}",
        allowed=f"a whole {', '.join(READABLE_FORMATS[:-1])} or {READABLE_FORMATS[-1]} file",
    )


def _upright(image: Image.Image) -> tuple[Image.Image, int]:
    """Return a picture upright, and the EXIF orientation in which it is stored."""
    try:
        with _without_pillows_warnings():
            orientation = image.getexif().get(EXIF_ORIENTATION)
            turn = None if orientation is None else UPRIGHT.get(orientation)
    except Exception:  # broken metadata of a sound picture
        return image, 1
    return (image, 1) if orientation is None or turn is None else (image.transpose(turn), int(orientation))


def _is_deep(image: Image.Image) -> bool:
    """Whether the samples have more than 8 bits (one channel then)."""
    return image.mode == "F" or image.mode.startswith("I")


def _decoded(stored: Image.Image, notes: list[str]) -> DecodedImage:
    profile = stored.info.get("icc_profile")
    image, orientation = _upright(stored)
    if _is_deep(image):
        image = _eight_bits(image, notes)
    alpha = None
    if image.has_transparency_data:
        whole = _convert(image, "RGBA", "image")
        alpha = whole.getchannel("A")
        image = _convert(image, "L", "image") if image.mode in ("1", "L", "LA") else whole.convert("RGB")
    pixels = _to_srgb(image, profile, notes)
    if alpha is not None:
        pixels.putalpha(alpha)
        pixels = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    generated = is_generated(stored)
    return DecodedImage(pixels=np.array(pixels), orientation=orientation, is_generated=generated, warnings=tuple(notes))


def _eight_bits(image: Image.Image, notes: list[str]) -> Image.Image:
    grey = np.asarray(image)
    top = grey.max()
    if image.mode == "F" or grey.min() < 0 or top > DEEP_LEVEL:
        raise RequestError(
            "image_depth", field="image", got=f"32-bit samples (mode {image.mode})", allowed="8 or 16 bits per sample"
        )
    if 0 < top < DARK_LEVEL:
        notes.append(_dark(str(top)))
    return Image.fromarray(((grey.astype(np.uint32) * 255 + DEEP_LEVEL // 2) // DEEP_LEVEL).astype(np.uint8))


def _dark(top: str) -> str:
    return f"dark_16_bit: the largest sample is {top} of {DEEP_LEVEL}: samples of fewer bits, stored in 16, are nearly black"


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Return a picture without alpha in sRGB; one without a profile, or with a broken one, is taken to be so already."""
    if profile:
        try:
            transform, mode = _transform(bytes(profile))
            if mode == "L" and image.mode not in ("1", "L"):
                raise ImageCms.PyCMSError("a profile of greys in a picture with colours")
            if (mode == "CMYK") != (image.mode == "CMYK"):
                raise ImageCms.PyCMSError(f"a profile of {mode} in a picture of {image.mode}")
            if transform is None:
                return _convert(image, "RGB", "image")
            moved = ImageCms.applyTransform(_convert(image, mode, "image"), transform)
            assert moved is not None
            return moved
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            notes.append(
                f"profile_unreadable: the ICC profile of {len(profile)} bytes cannot be used ({error}), sRGB is assumed"
            )
    return _convert(image, "RGB", "image")


@functools.lru_cache(maxsize=PROFILES_KEPT)
def _transform(profile: bytes) -> tuple[ImageCms.ImageCmsTransform | None, str]:
    """Return the transform of a profile to sRGB, None where it is sRGB itself, and the mode of pictures that it takes.

    Raises: ImageCms.PyCMSError, OSError, ValueError where there is none.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if space not in PROFILE_MODES:
        raise ValueError(f"a profile of {space}")
    mode = PROFILE_MODES[space]
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode != "CMYK":
        levels = np.arange(0, 256, 17, dtype=np.uint8)
        grid = levels[None] if mode == "L" else np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
        probe = Image.fromarray(grid)
        moved = ImageCms.applyTransform(probe, transform)
        assert moved is not None
        if np.abs(np.asarray(moved, np.int16) - np.asarray(probe.convert("RGB"), np.int16)).max() <= SAME_LEVEL:
            return None, mode
    return transform, mode


def _convert(image: Image.Image, mode: str, field: str) -> Image.Image:
    try:
        return image.convert(mode)
    except MemoryError:
        raise
    except Exception as error:  # the mode is none that can be converted, or its palette or transparency is broken
        got = f"colours of mode {image.mode}"
        raise RequestError(f"{_kind(field)}_undecodable", field=field, got=got, allowed="grey, palette, RGB or CMYK") from error


def _marked(image: Image.Image, field: str, notes: list[str]) -> DecodedMask:
    """Read an upright mask."""
    if image.mode == "1":
        return _mark(np.asarray(image), 1, field, notes)
    if _is_deep(image):
        return _mark_samples(np.asarray(image), field, notes)
    if image.has_transparency_data:  # a palette's too
        colours = np.asarray(_convert(image, "RGBA", field))
        if (colours[..., :3] == colours[0, 0, :3]).all() and (colours[..., 3] != colours[0, 0, 3]).any():
            return _mark(colours[..., 3], 255, field, notes)
    else:
        colours = np.asarray(_convert(image, "RGB", field))
    found = _mark(np.maximum(np.maximum(colours[..., 0], colours[..., 1]), colours[..., 2]), 255, field, notes)
    if image.mode == "P" and (found.pixels.all() or not found.pixels.any()):
        indices = np.asarray(image)
        if 0 < np.count_nonzero(indices) < indices.size:
            return DecodedMask(pixels=indices != 0, warnings=tuple(notes))
    return found


def _mark(levels: np.ndarray, full: float, field: str, notes: list[str]) -> DecodedMask:
    """Mark what is edited by levels (height, width) of which `full` is white."""
    low, high = levels.min(), levels.max()
    between = (levels != low) & (levels != high)
    has_more = bool(between.any())
    if has_more:
        pixels: BoolArray = levels > full / 2
        grey = float(((levels != 0) & (levels != full)).mean())
        notes = [
            *notes,
            f"mask_not_black_and_white: {grey:.1%} of the samples of {field} are neither, half of white is the border",
        ]
    else:
        pixels = levels == high if low < high else levels != 0
    if pixels.all():
        notes = [*notes, f"mask_covers_everything: {field} marks the whole picture"]
    if not pixels.any():
        notes = [*notes, f"mask_covers_nothing: {field} marks no pixel"]
    return DecodedMask(pixels=pixels, warnings=tuple(notes))


def _mark_samples(levels: np.ndarray, field: str, notes: list[str]) -> DecodedMask:
    """Mark by samples whose depth does not say what is white: the end of the smallest usual scale that holds them all."""
    levels = np.nan_to_num(levels) if levels.dtype.kind == "f" else levels
    top = float(levels.max())
    return _mark(levels, next((scale for scale in MASK_SCALES if top <= scale), top), field, notes)
