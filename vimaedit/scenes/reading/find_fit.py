"""How well one drawn object explains a part of a picture, and where and how large it does so best."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from vimaedit.scenes.palette import LOOKS, object_tones
from vimaedit.scenes.reading.templates import Float32Array
from vimaedit.scenes.render import line_width, pixel_place
from vimaedit.scenes.scenes import SceneObject
from vimaedit.scenes.shapes import object_layers

STRIDES = (3, 1)  # px by which an object is moved or resized at a time
SIZE_SLACK = 0.25  # share of its size by which an object may be smaller or larger than was told


def settle(
    picture: Float32Array, behind: Float32Array, weight: Float32Array, guess: SceneObject, style: str, reach: int
) -> SceneObject:
    """Move and resize an object, pixel by pixel, until its drawing explains most; at most `reach` px from the guess.

    Shapes: `picture` without texture, `behind` (size, size, 3); `weight` (size, size), 0 where the object is hidden.
    """
    size = len(picture)
    start = pixel_place(guess.x, guess.y, guess.size, size)
    slack = max(1, round(start[2] * SIZE_SLACK))
    gains = {start: explained(picture, behind, weight, guess, style)}
    best = start
    for stride in STRIDES:
        while True:
            for near in _neighbours(best, stride):
                far = max(abs(near[0] - start[0]), abs(near[1] - start[1]))
                if near not in gains and far <= reach and abs(near[2] - start[2]) <= slack and near[2] > 2:
                    gains[near] = explained(picture, behind, weight, moved(guess, near, size), style)
            better = max(gains, key=lambda place: gains[place])
            if better == best:
                break
            best = better
    return guess if best == start else moved(guess, best, size)


def explained(picture: Float32Array, behind: Float32Array, weight: Float32Array, each: SceneObject, style: str) -> float:
    """Return by how much the squared error falls when an object is drawn over what lies behind it."""
    size = len(picture)
    x, y, side = pixel_place(each.x, each.y, each.size, size)
    coverage, pattern, ink = _shares(each.shape, each.material, each.face, side, each.angle, line_width(style, size))
    half = len(coverage) // 2
    left, top = x - half, y - half
    rows, columns = slice(max(0, top), min(size, y + half)), slice(max(0, left), min(size, x + half))
    # The channels of a row lie side by side: numpy is slow where its innermost axis has three numbers.
    wide = slice(3 * columns.start, 3 * columns.stop)
    inside = (slice(rows.start - top, rows.stop - top), slice(3 * (columns.start - left), 3 * (columns.stop - left)))
    tones = _tones(each.colour, each.face, style, max(0, columns.stop - columns.start))
    drawn = tones[0] if each.material == "plain" and each.face is None else tones[0] + pattern[inside] * (tones[1] - tones[0])
    if LOOKS[style].line:
        drawn = drawn + ink[inside] * (tones[2] - drawn)
    hidden = behind.reshape(size, -1)[rows, wide]
    gap = picture.reshape(size, -1)[rows, wide] - hidden
    change = coverage[inside] * (drawn - hidden)
    # |gap|^2 - |gap - change|^2
    seen = weight[rows, columns].repeat(3, axis=1)
    return float((seen * change * (2 * gap - change)).sum())


@functools.lru_cache(maxsize=1024)
def _shares(
    shape: str, material: str, face: str | None, side: int, angle: int, line: int
) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Return how much of each channel of a pixel an object, its pattern and its outline take, (tile, 3 * tile)."""
    layers = object_layers(shape, material, face, side, angle, line)
    coverage, pattern, ink = (
        (np.asarray(layer).astype(np.float32) / np.float32(255)).repeat(3, axis=1)
        for layer in (layers.coverage, layers.pattern, layers.line)
    )
    return coverage, pattern, ink


@functools.lru_cache(maxsize=1024)
def _tones(colour: str, face: str | None, style: str, width: int) -> Float32Array:
    """Return an object's tones, repeated for every pixel of a row, (tones, 3 * width)."""
    return np.tile(np.array(object_tones(colour, face, style), dtype=np.float32), (1, width))


def moved(each: SceneObject, place: tuple[int, int, int], size: int) -> SceneObject:
    """Return an object with its centre and side at these pixels of a picture of `size` px."""
    x, y, side = (round(value * 1000 / size) for value in place)
    return replace(each, x=x, y=y, size=side)


def _neighbours(place: tuple[int, int, int], stride: int) -> Iterator[tuple[int, int, int]]:
    x, y, side = place
    for step in (-stride, stride):
        yield x + step, y, side
        yield x, y + step, side
        yield x, y, side + step
