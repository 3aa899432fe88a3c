"""Pictures that a coder finds as hard as photographs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vimaedit.types import UInt8Array

PHOTOGRAPH = 3.0  # levels of 255, the standard deviation of a photograph's grain


def grainy_picture(seed: int, size: int, grain: float = PHOTOGRAPH) -> UInt8Array:
    """Draw a smooth picture, (size, size, 3) uint8, and add noise of so many levels to every value."""
    draw = np.random.Generator(np.random.PCG64(seed))
    coarse = Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.int16)
    noise = draw.normal(0.0, grain, smooth.shape).round().astype(np.int16)
    picture: UInt8Array = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    return picture
