"""From a scene to pixels, and which pixels a thing in it touches."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageChops

from vimaedit.scenes.draws import Draws
from vimaedit.scenes.palette import LOOKS, background_tones, object_tones
from vimaedit.scenes.scenes import Background, Scene, SceneObject
from vimaedit.scenes.shapes import OVERSAMPLING, ObjectLayers, object_layers
from vimaedit.types import BoolArray, UInt8Array


def render_scene(scene: Scene, size: int) -> UInt8Array:
    """Draw a scene as a picture (size, size, 3)."""
    picture = _paint(scene, size)
    texture = style_texture(scene.style, size)
    return np.array(picture if texture is None else ImageChops.multiply(picture, texture))


def render_without_texture(scene: Scene, size: int) -> UInt8Array:
    """Draw a scene as a picture (size, size, 3) before the style's texture lies over it."""
    return np.array(_paint(scene, size))


def object_pixels(scene: Scene, index: int, size: int) -> BoolArray:
    """Return the pixels (size, size) that an object touches."""
    touched: BoolArray = object_coverage(scene, size)[index] > 0
    return touched


def background_pixels(scene: Scene, size: int) -> BoolArray:
    """Return the pixels (size, size) in which the background is seen."""
    seen: BoolArray = ~(object_coverage(scene, size) == 255).any(axis=0)
    return seen


def object_coverage(scene: Scene, size: int) -> UInt8Array:
    """Return how much of each pixel every object covers, (objects, size, size), 0..255."""
    coverage = np.zeros((len(scene.objects), size, size), dtype=np.uint8)
    for n, each in enumerate(scene.objects):
        layers, (left, top) = placed_layers(each, scene.style, size)
        tile = layers.coverage.width
        rows, columns = slice(max(0, top), top + tile), slice(max(0, left), left + tile)
        part = coverage[n, rows, columns]
        part[:] = np.asarray(layers.coverage)[max(0, -top) :, max(0, -left) :][: part.shape[0], : part.shape[1]]
    return coverage


def placed_layers(each: SceneObject, style: str, size: int) -> tuple[ObjectLayers, tuple[int, int]]:
    """Return an object's layers and the pixel (left, top) where they go; centres lie on whole pixels."""
    x, y, side = pixel_place(each.x, each.y, each.size, size)
    layers = object_layers(each.shape, each.material, each.face, side, each.angle, line_width(style, size))
    half = layers.coverage.width // 2
    return layers, (x - half, y - half)


def pixel_place(x: int, y: int, length: int, size: int) -> tuple[int, int, int]:
    """Round an object's centre and size, in thousandths of the side, to pixels."""
    across, down, side = ((value * size + 500) // 1000 for value in (x, y, length))
    return across, down, max(1, side)


def line_width(style: str, size: int) -> int:
    """Return the width of a style's outlines in quarter pixels."""
    return LOOKS[style].line * size * OVERSAMPLING // 1000


@functools.lru_cache(maxsize=1024)
def draw_background(background: Background, style: str, size: int) -> Image.Image:
    """Draw a background without the style's texture, as an RGB picture of size x size."""
    ground, pattern = background_tones(background, style)
    picture = Image.new("RGB", (size, size), ground)
    if background.pattern != "plain":
        picture.paste(pattern, (0, 0), _background_mask(background.pattern, size))
    return picture


def _paint(scene: Scene, size: int) -> Image.Image:
    picture = draw_background(scene.background, scene.style, size).copy()
    for each in scene.objects:
        layers, corner = placed_layers(each, scene.style, size)
        ground, pattern, ink = object_tones(each.colour, each.face, scene.style)
        tile = Image.new("RGB", layers.coverage.size, ground)
        if each.face is not None or each.material != "plain":
            tile.paste(pattern, (0, 0), layers.pattern)
        if LOOKS[scene.style].line:
            tile.paste(ink, (0, 0), layers.line)
        picture.paste(tile, corner, layers.coverage)
    return picture


@functools.lru_cache(maxsize=64)
def _background_mask(pattern: str, size: int) -> Image.Image:
    if pattern == "gradient":
        rows = (np.arange(size) * 255 + (size - 1) // 2) // max(1, size - 1)
        return Image.fromarray(np.repeat(rows.astype(np.uint8)[:, None], size, axis=1))
    squares = np.arange(size * OVERSAMPLING) * 8 // (size * OVERSAMPLING)
    mask = (squares[None, :] + squares[:, None]) % 2
    return Image.fromarray(mask.astype(np.uint8) * 255).reduce(OVERSAMPLING)


@functools.lru_cache(maxsize=16)
def style_texture(style: str, size: int) -> Image.Image | None:
    """Return what a style multiplies the whole picture with, RGB; None: nothing."""
    # Both repeat eight times along the side, as the grid of a small autoencoder's latents does.
    if style == "sketch":
        # Slanting strokes of a pencil, of uneven length and weight.
        draws = Draws(0, 1)
        weights = np.array([[draws.between(8, 60) for _ in range(7)] for _ in range(3)])
        n = np.arange(size * OVERSAMPLING) * 840 // (size * OVERSAMPLING)
        along, across = (n[None, :] - n[:, None]) % 105, (n[None, :] + n[:, None]) % 105
        stroke = np.where(across % 35 < 12, weights[across // 35, along // 15], 0)
        grey = Image.fromarray((255 - stroke).astype(np.uint8)).reduce(OVERSAMPLING)
    elif style == "watercolor":
        # Pigment that gathers in the grain of the paper.
        draws = Draws(0, 2)
        blots = np.array([[draws.between(205, 255) for _ in range(3)] for _ in range(3)], dtype=np.uint8)
        grey = Image.fromarray(np.tile(blots, (8, 8))).resize((size, size), Image.Resampling.BICUBIC)
    else:
        return None
    return Image.merge("RGB", (grey, grey, grey))
