"""Coded pictures -> arrays: upright, in sRGB, with a word on everything that is not as it stands in the file.

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
from vimaedit.types import UInt8Array

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
SRGB_GAMMA = 1 / 2.2  # as PNG states it
SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # white, red, green, blue: x and y of each
SAME_COLOUR = 0.01  # of both: what differs by no more is rounded
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


def decode_image(data: bytes, *, min_side_px: int = 1, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Decode a picture as `decode_whole` does, for those who have no use for its warnings. Returns (height, width, 3)."""
    return decode_whole(data, min_side_px=min_side_px, max_pixels=max_pixels).pixels


def decode_whole(data: bytes, *, min_side_px: int = 1, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode a picture of any mode to sRGB: the first frame, by its ICC profile, EXIF rotation applied, alpha on white.

    16-bit grey is scaled to 8 bits. Warnings: `first_frame_only`, `profile_unreadable`, `colours_assumed`, `dark_16_bit`.

    Raises: RequestError `image_empty`, `image_undecodable`, `image_too_small`, `image_too_large`, `image_too_slow` (a JPEG of absurdly
    many scans), `image_depth`.
    """
    return _decoded(*load_stored(data, field="image", min_side_px=min_side_px, max_pixels=max_pixels))


def read_picture(picture: Picture) -> DecodedImage:
    """Return a picture given as a PIL image, an array, encoded bytes or a local file.

    Raises: RequestError as `decode_whole` with its default limits, `image_missing`, `image_shape`.
    """
    given = opened(picture, "image")
    if isinstance(given, bytes):
        return decode_whole(given, min_side_px=MIN_SIDE_PX, max_pixels=MAX_PIXELS)
    if isinstance(given, Image.Image):
        _check_size(given.size, "image", MIN_SIDE_PX, MAX_PIXELS)
        return _decoded(given, notes_of(given, "image"))
    if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3:
        got = f"{given.dtype} {given.shape}"
        raise RequestError("image_shape", field="image", got=got, allowed="uint8 (height, width, 3)")
    _check_size((given.shape[1], given.shape[0]), "image", MIN_SIDE_PX, MAX_PIXELS)
    return DecodedImage(pixels=given)


def opened(picture: Any, field: str) -> Any:
    """Return the bytes of a picture that is a local file, and any other as it is.

    Raises: RequestError where there is none.
    """
    if not isinstance(picture, str | PathLike):
        return picture
    path = Path(picture)
    if not path.is_file():
        raise RequestError(f"{_kind(field)}_missing", field=field, got=repr(str(picture)), allowed="a file that exists")
    return path.read_bytes()


def load_stored(data: bytes, *, field: str, min_side_px: int, max_pixels: int) -> tuple[Image.Image, list[str]]:
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
    notes = notes_of(image, field)
    is_cut = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) and not is_deep(image)
    try:
        with _without_pillows_warnings():
            image.load()
        if image.mode == "P" and image.palette is None:
            raise ValueError("it has colours of a palette, and no palette")
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


def notes_of(image: Image.Image, field: str) -> list[str]:
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


def upright(image: Image.Image) -> tuple[Image.Image, int]:
    """Return a picture upright, and the EXIF orientation in which it is stored."""
    try:
        with _without_pillows_warnings():
            orientation = image.getexif().get(EXIF_ORIENTATION)
            turn = None if orientation is None else UPRIGHT.get(orientation)
    except Exception:  # broken metadata of a sound picture
        return image, 1
    return (image, 1) if orientation is None or turn is None else (image.transpose(turn), int(orientation))


def is_deep(image: Image.Image) -> bool:
    """Whether the samples have more than 8 bits (one channel then)."""
    return image.mode == "F" or image.mode.startswith("I")


def _decoded(stored: Image.Image, notes: list[str]) -> DecodedImage:
    profile = stored.info.get("icc_profile")
    image, orientation = upright(stored)
    if is_deep(image):
        image = _eight_bits(image, notes)
    alpha = None
    if image.has_transparency_data:
        whole = convert(image, "RGBA", "image")
        alpha = whole.getchannel("A")
        image = convert(image, "L", "image") if image.mode in ("1", "L", "LA") else whole.convert("RGB")
    if not profile:
        notes += _stated_colours(stored)
    pixels = _to_srgb(image, profile, notes)
    if alpha is not None:
        pixels.putalpha(alpha)
        pixels = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    generated = is_generated(stored)
    return DecodedImage(pixels=np.array(pixels), orientation=orientation, is_generated=generated, warnings=tuple(notes))


def _stated_colours(image: Image.Image) -> list[str]:
    """Say what a PNG without a profile states of its colours, and is not followed."""
    stated = []
    if "srgb" not in image.info:
        gamma, primaries = image.info.get("gamma"), image.info.get("chromaticity")
        if isinstance(gamma, float) and abs(gamma - SRGB_GAMMA) > SAME_COLOUR:
            stated.append(f"a gamma of {gamma:g}")
        if primaries is not None and max(abs(a - b) for a, b in zip(primaries, SRGB_PRIMARIES, strict=False)) > SAME_COLOUR:
            stated.append("other primaries")
    return (
        [f"colours_assumed: the file states {' and '.join(stated)} without an ICC profile, sRGB is assumed"] if stated else []
    )


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
                return convert(image, "RGB", "image")
            moved = ImageCms.applyTransform(convert(image, mode, "image"), transform)
            assert moved is not None
            return moved
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            notes.append(
                f"profile_unreadable: the ICC profile of {len(profile)} bytes cannot be used ({error}), sRGB is assumed"
            )
    return convert(image, "RGB", "image")


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


def convert(image: Image.Image, mode: str, field: str) -> Image.Image:
    try:
        return image.convert(mode)
    except MemoryError:
        raise
    except Exception as error:  # the mode is none that can be converted, or its palette or transparency is broken
        got = f"colours of mode {image.mode}"
        raise RequestError(f"{_kind(field)}_undecodable", field=field, got=got, allowed="grey, palette, RGB or CMYK") from error
