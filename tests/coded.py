"""Small coded pictures for tests of decoding and of the canvas."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

LIMITS = {"min_side_px": 5, "max_pixels": 100_000_000}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture: its resized pixels are neither flat nor noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Image.Image, image_format: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()
