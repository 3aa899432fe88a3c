"""How well every possible object or background explains a part of a picture, in the least-squares sense."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vimaedit.scenes.palette import object_tones
from vimaedit.scenes.render import draw_background, style_texture
from vimaedit.scenes.scenes import (
    BACKGROUND_COLOURS,
    BACKGROUND_PATTERNS,
    COLOURS,
    FACED_SHAPES,
    FACES,
    MATERIALS,
    POSES,
    SHAPES,
    STYLES,
    UPSIDE_DOWN,
    Background,
)
from vimaedit.scenes.shapes import object_layers
from vimaedit.types import UInt8Array

Float32Array = NDArray[np.float32]

TILTS = (27, 32, 38)  # the angles that stand for all tilts
COARSE_FROM = 34  # px; objects at least this large are compared at half of the resolution
PIXEL_CAP = 3000.0  # squared error over all channels above which a pixel is no background, however wrong it is
_CHUNK = 52  # backgrounds compared at a time


@dataclass(frozen=True)
class Template:
    """One thing an object may be, but for its colour."""

    shape: str
    angle: int
    material: str
    face: str | None


@functools.cache
def object_templates() -> tuple[Template, ...]:
    """List every shape in every pose with every material, and the faces of upright plain ones."""
    templates = []
    for shape in SHAPES:
        angles = {"upright": (0,), "upside-down": (UPSIDE_DOWN,), "tilted right": TILTS}
        angles["tilted left"] = tuple(360 - tilt for tilt in TILTS)
        for angle in (angle for pose in POSES[shape] for angle in angles[pose]):
            templates += [Template(shape, angle, material, None) for material in MATERIALS]
        if shape in FACED_SHAPES:
            templates += [Template(shape, 0, "plain", face) for face in FACES]
    return tuple(templates)


@functools.lru_cache(maxsize=2**15)
def _object_weights(index: int, side: int, line: int, coarse: bool, soft: bool) -> UInt8Array:
    """Return how much of each pixel a template's three colours take, (3, pixels), 0..255."""
    each = object_templates()[index]
    layers = object_layers(each.shape, each.material, each.face, side, each.angle, line)
    coverage, pattern, ink = (
        np.asarray(layer, dtype=np.float32) / 255 for layer in (layers.coverage, layers.pattern, layers.line)
    )
    inner = coverage * (1 - ink)
    weights: Float32Array = np.stack([inner * (1 - pattern), inner * pattern, coverage * ink], axis=-1).astype(np.float32)
    if soft:
        weights = soften(weights)
    if coarse:
        weights = halve(weights)
    return np.rint(weights * 255).astype(np.uint8).reshape(-1, 3).T.copy()


@functools.cache
def _object_colours(style: str) -> Float32Array:
    """Return the three colours of every template in every colour, (templates, colours, 3 tones, 3 channels)."""
    return np.array(
        [[object_tones(colour, each.face, style) for colour in COLOURS] for each in object_templates()],
        dtype=np.float32,
    )


def object_errors(
    patch: Float32Array,
    behind: Float32Array,
    weight: Float32Array,
    side: int,
    line: int,
    style: str,
    soft: bool,
    which: NDArray[np.intp],
) -> Float32Array:
    """Return the squared error of the templates numbered in `which` in every colour, (templates, colours).

    A picture is modelled as behind + sum_k w_k (c_k - behind) with the three colours c_k; expanding the square leaves sums over
    pixels that do not depend on the colours. `soft`: the picture is blurred as `soften` does.

    Shapes: `patch`, `behind` (tile, tile, 3) picture and what lies behind the object; `weight` (tile, tile), 0 where the
    object is hidden.
    """
    coarse = side >= COARSE_FROM
    if coarse:
        patch, behind, weight = halve(patch), halve(behind), halve(weight[..., None])[..., 0]
    behind, m = behind.reshape(-1, 3), weight.reshape(-1, 1)
    gap = patch.reshape(-1, 3) - behind
    kinds = 3 if line else 2  # without outlines no pixel has the third colour
    packed = np.stack([_object_weights(n, side, line, coarse, soft)[:kinds] for n in which.tolist()], axis=1)
    masks = packed.astype(np.float32) / np.float32(255)
    tones = _object_colours(style)[which, :, :kinds]

    linear = np.stack([mask @ np.concatenate([m * gap * behind, m * gap], axis=1) for mask in masks], axis=1)
    error: Float32Array = (m * gap**2).sum() + 2 * linear[..., :3].sum(axis=(1, 2))[:, None]
    error = error - 2 * np.einsum("tkc,tnkc->tn", linear[..., 3:], tones)
    sums = np.concatenate([m * behind**2, m * behind, m], axis=1)
    for a, b in itertools.combinations_with_replacement(range(kinds), 2):
        square = (masks[a] * masks[b]) @ sums
        one, other = tones[:, :, a], tones[:, :, b]
        part = square[:, None, :3] - (one + other) * square[:, None, 3:6] + one * other * square[:, None, 6:]
        error = error + (1 if a == b else 2) * part.sum(axis=-1)
    return error * 4 if coarse else error


@functools.cache
def background_templates() -> tuple[tuple[str, Background], ...]:
    """List every background in every style."""
    plain = [
        Background(colour=colour, pattern=pattern)
        for pattern in BACKGROUND_PATTERNS
        if pattern != "gradient"
        for colour in BACKGROUND_COLOURS
    ]
    graded = [
        Background(colour=top, pattern="gradient", second=bottom)
        for top in BACKGROUND_COLOURS
        for bottom in BACKGROUND_COLOURS
        if top != bottom
    ]
    return tuple((style, background) for style in STYLES for background in (*plain, *graded))


@functools.lru_cache(maxsize=2)
def _background_stack(size: int) -> Float32Array:
    """Return all backgrounds at half of the resolution, (templates, pixels, 3)."""
    return np.stack(
        [
            halve(np.asarray(draw_background(background, style, size), dtype=np.float32) * texture(style, size)).reshape(-1, 3)
            for style, background in background_templates()
        ]
    )


def background_errors(picture: Float32Array, weight: Float32Array) -> Float32Array:
    """Return the mean squared error per pixel and channel of every background of `background_templates`.

    What does not belong to the background counts for no more than `PIXEL_CAP`, so that things whose place is not known do not
    decide.

    Shapes: `picture` (size, size, 3), `weight` (size, size), 0 where objects are known to be; an even size.
    """
    stack = _background_stack(picture.shape[0])
    seen, m = halve(picture).reshape(-1, 3), (halve(weight[..., None]) == 1).astype(np.float32).reshape(-1)
    errors = []
    for start in range(0, len(stack), _CHUNK):
        gap = stack[start : start + _CHUNK] - seen
        errors.append(np.minimum(np.einsum("tpc,tpc->tp", gap, gap), np.float32(PIXEL_CAP)) @ m)
    return (np.concatenate(errors) / np.float32(max(1.0, 3 * float(m.sum())))).astype(np.float32)


@functools.lru_cache(maxsize=16)
def texture(style: str, size: int) -> Float32Array:
    """Return what a style multiplies its pictures with, (size, size, 1), 0 to 1."""
    grey = style_texture(style, size) or Image.new("RGB", (size, size), "white")
    return np.asarray(grey, dtype=np.float32)[..., :1] / np.float32(255)


def halve(values: Float32Array) -> Float32Array:
    """Average blocks of two by two pixels: (2h, 2w, channels) to (h, w, channels)."""
    total = values[::2, ::2] + values[::2, 1::2] + values[1::2, ::2] + values[1::2, 1::2]
    return (total / 4).astype(np.float32, copy=False)


def soften(values: Float32Array) -> Float32Array:
    """Blur (h, w, channels) with binomial weights 1 4 6 4 1 along both sides, a spread of one pixel; edges are repeated."""
    for axis in (0, 1):
        padding = [(2, 2) if n == axis else (0, 0) for n in range(3)]
        padded = np.moveaxis(np.pad(values, padding, mode="edge"), axis, 0)
        count = len(padded) - 4
        total = 6 * padded[2 : 2 + count]
        total = total + 4 * (padded[1 : 1 + count] + padded[3 : 3 + count]) + (padded[:count] + padded[4:])
        values = np.moveaxis(total / 16, 0, axis)
    return values.astype(np.float32, copy=False)
