"""Coded masks -> arrays, True = edit, upright; with a word on everything that is not as it stands in the file.

Sizes are (width, height) as in PIL, shapes (height, width) as in numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from vimaedit.decoding import (
    DEEP_LEVEL,
    MAX_PIXELS,
    SWAPPED,
    UPRIGHT,
    Picture,
    convert,
    is_deep,
    load_stored,
    notes_of,
    opened,
    upright,
)
from vimaedit.errors import RequestError
from vimaedit.images import Size
from vimaedit.types import BoolArray

MASK_SCALES = (1, 255, 4095, DEEP_LEVEL)  # the full scales that samples of more than 8 bits may have


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedMask:
    """A mask (height, width), True = edit, and what to know of it."""

    pixels: BoolArray
    warnings: tuple[str, ...] = ()


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
    image, notes = load_stored(data, field=field, min_side_px=1, max_pixels=max_pixels)
    return _marked(upright(image)[0], field, notes)


def decode_holes(data: bytes, *, max_pixels: int = MAX_PIXELS, field: str = "reference_mask") -> DecodedMask:
    """Decode a mask that is a picture with holes: what is not opaque is edited.

    Raises: RequestError as `decode_whole`, with the field; `mask_without_holes` for a picture that has none.
    """
    image, notes = load_stored(data, field=field, min_side_px=1, max_pixels=max_pixels)
    image = upright(image)[0]
    if not image.has_transparency_data or (alpha := np.asarray(convert(image, "RGBA", field))[..., 3]).min() == 255:
        raise RequestError(
            "mask_without_holes", field=field, got="an opaque picture", allowed="one that is transparent in places"
        )
    return DecodedMask(pixels=alpha < 255, warnings=tuple(notes))


def read_mask(mask: Picture | BoolArray) -> DecodedMask:
    """Return a mask given as a picture may be, or as an array (height, width) or (height, width, channels) of any type.

    Raises: RequestError as `decode_whole_mask`, `mask_missing`, `mask_shape`.
    """
    given = opened(mask, "given_mask")
    if isinstance(given, bytes):
        return decode_whole_mask(given)
    if isinstance(given, Image.Image):
        return _marked(upright(given)[0], "given_mask", notes_of(given, "given_mask"))
    if given.ndim not in (2, 3) or not given.size:
        raise RequestError("mask_shape", field="mask", got=f"an array of shape {given.shape}", allowed="(height, width)")
    return _mark_samples(np.atleast_3d(given)[..., :3].max(axis=-1), "given_mask", [])


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


def _marked(image: Image.Image, field: str, notes: list[str]) -> DecodedMask:
    """Read an upright mask."""
    if image.mode == "1":
        return _mark(np.asarray(image), 1, field, notes)
    if is_deep(image):
        return _mark_samples(np.asarray(image), field, notes)
    if image.has_transparency_data:  # a palette's too
        colours = np.asarray(convert(image, "RGBA", field))
        if (colours[..., :3] == colours[0, 0, :3]).all() and (colours[..., 3] != colours[0, 0, 3]).any():
            return _mark(colours[..., 3], 255, field, notes)
    else:
        colours = np.asarray(convert(image, "RGB", field))
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
