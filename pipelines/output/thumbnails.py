"""Thumbnails for pages: small pictures as WebP, masks as PNG of four colours."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from vimaedit.types import BoolArray, UInt8Array

QUALITY = 78  # of WebP
# Neither, the editor's mask alone, the reference mask alone, both.
MASK_COLOURS = ((24, 24, 27), (234, 138, 41), (56, 118, 214), (250, 250, 250))


def code_picture(picture: UInt8Array, px: int) -> bytes:
    """Code a picture (height, width, 3) with its longer side at most `px`."""
    image = Image.fromarray(picture)
    image.thumbnail((px, px), Image.Resampling.BOX if max(image.size) > 4 * px else Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=2)
    return buffer.getvalue()


def code_masks(own: BoolArray | None, reference: BoolArray | None, px: int) -> bytes:
    """Code an editor's mask and the reference mask, either (height, width), in the colours of `MASK_COLOURS`."""
    masks = [mask for mask in (own, reference) if mask is not None]
    height, width = masks[0].shape
    scale = min(1.0, px / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = [
        None if mask is None else np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        for mask in (own, reference)
    ]
    both = reference is None or own is None  # a single mask is shown as such
    indices = np.zeros((size[1], size[0]), dtype=np.uint8)
    for bit, mask in enumerate(small):
        if mask is not None:
            indices |= mask.astype(np.uint8) * (3 if both else 1 + bit)
    image = Image.fromarray(indices)
    image.putpalette([value for colour in MASK_COLOURS for value in colour])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=False, bits=2)
    return buffer.getvalue()
