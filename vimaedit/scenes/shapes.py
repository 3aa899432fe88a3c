"""Outlines of the shapes and the coverage masks of one object, by drawing larger and averaging."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

OVERSAMPLING = 4
Point = tuple[float, float]


@dataclass(frozen=True, eq=False)
class ObjectLayers:
    """What an object covers, square tiles of mode L (0 to 255) around its centre.

    `coverage`: of the pixel by the object; `pattern`: of the object by its pattern or face; `line`: of the object by its
    outline, which lies over the pattern.
    """

    coverage: Image.Image
    pattern: Image.Image
    line: Image.Image


@functools.cache
def outline(shape: str) -> tuple[Point, ...]:
    """Return a shape's closed outline within about -1..1, y down."""
    turns = [math.tau * n / 72 for n in range(72)]
    if shape == "circle":
        return tuple((math.cos(t), math.sin(t)) for t in turns)
    if shape == "square":
        return ((-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84))
    if shape == "triangle":
        return ((0.0, -1.0), (0.92, 0.86), (-0.92, 0.86))
    if shape == "star":
        radii = (1.06, 0.45) * 5
        return tuple((r * math.sin(math.pi * n / 5), 0.06 - r * math.cos(math.pi * n / 5)) for n, r in enumerate(radii))
    if shape == "heart":
        # x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t
        return tuple(
            (
                math.sin(t) ** 3,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 15.5 - 0.12,
            )
            for t in turns
        )
    if shape == "cross":
        a = 0.34
        corners = ((a, 1), (a, a), (1, a), (1, -a), (a, -a), (a, -1), (-a, -1), (-a, -a), (-1, -a), (-1, a), (-a, a), (-a, 1))
        return tuple((float(x), float(y)) for x, y in corners)
    raise ValueError(f"shape: got {shape!r}")


@functools.lru_cache(maxsize=4096)
def object_layers(shape: str, material: str, face: str | None, side: int, angle: int, line: int) -> ObjectLayers:
    """Draw an object of `side` pixels, turned by `angle` degrees, with an outline of `line` quarter pixels (0: none)."""
    tile = tile_side(side, line)
    coverage, ink = _outline_masks(shape, side, angle, line)
    if face is not None:
        pattern = _face_mask(face, shape, tile, side)
    elif material != "plain":
        pattern = _material_mask(material, tile, side)
    else:
        pattern = Image.new("L", (tile, tile))
    return ObjectLayers(coverage, pattern, ink)


def tile_side(side: int, line: int) -> int:
    """Return the side of an object's tiles in pixels, even: room for every angle and the outline."""
    return 2 * (side * 3 // 4 + line // OVERSAMPLING + 2)


@functools.lru_cache(maxsize=4096)
def _outline_masks(shape: str, side: int, angle: int, line: int) -> tuple[Image.Image, Image.Image]:
    tile = tile_side(side, line)
    whole = Image.new("L", (tile * OVERSAMPLING, tile * OVERSAMPLING))
    ink = Image.new("L", whole.size)
    drawn = ImageDraw.Draw(whole)
    middle, scale = tile * OVERSAMPLING / 2, side * OVERSAMPLING / 2
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    corners = [
        (round(middle + scale * (x * cosine - y * sine)), round(middle + scale * (x * sine + y * cosine)))
        for x, y in outline(shape)
    ]
    drawn.polygon(corners, fill=255)
    if line:
        ImageDraw.Draw(ink).line([*corners, *corners[:2]], fill=255, width=line, joint="curve")
    whole.paste(255, (0, 0), ink)
    coverage = whole.reduce(OVERSAMPLING)
    if not line:
        return coverage, Image.new("L", (tile, tile))
    share = np.asarray(ink.reduce(OVERSAMPLING)).astype(np.int64) * 255 // np.maximum(np.asarray(coverage), 1)
    return coverage, Image.fromarray(np.minimum(share, 255).astype(np.uint8))


@functools.lru_cache(maxsize=1024)
def _material_mask(material: str, tile: int, side: int) -> Image.Image:
    """Return how much of each pixel the pattern takes, (tile, tile); it is fixed to the object's upright box."""
    n = np.arange(tile * OVERSAMPLING)
    # Positions in 1/840 of the object's side from its left top corner; 840 divides by all that is needed below.
    at = (2 * n + 1 - (tile - side) * OVERSAMPLING) * 840 // (2 * side * OVERSAMPLING)
    x, y = at[None, :], at[:, None]
    if material == "striped":
        mask = (x + 0 * y) // 120 % 2 == 1
    else:
        row = y // 210
        across, down = (x + row % 2 * 140) % 280 - 140, y % 210 - 105
        mask = across**2 + down**2 < 80**2
    return Image.fromarray(mask.astype(np.uint8) * 255).reduce(OVERSAMPLING)


@functools.lru_cache(maxsize=1024)
def _face_mask(face: str, shape: str, tile: int, side: int) -> Image.Image:
    mask = Image.new("L", (tile * OVERSAMPLING, tile * OVERSAMPLING))
    drawn = ImageDraw.Draw(mask)
    unit = side * OVERSAMPLING / 200
    low = -14 if shape == "heart" else 0
    left_top = mask.size[0] / 2

    def box(x: float, y: float, half_x: float, half_y: float) -> list[int]:
        edges = (x - half_x, y - half_y, x + half_x, y + half_y)
        return [round(left_top + unit * (edge + (low if n % 2 else 0))) for n, edge in enumerate(edges)]

    for x in (-36, 36):
        drawn.ellipse(box(x, -26, 15, 18), fill=255)
    width = max(2, round(19 * unit))
    if face == "smiling":
        drawn.arc(box(0, 12, 46, 38), 10, 170, fill=255, width=width)
    else:
        drawn.arc(box(0, 58, 46, 38), 190, 350, fill=255, width=width)
    return mask.reduce(OVERSAMPLING)
