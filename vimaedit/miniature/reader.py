"""Name what a picture of the scene world shows, from its pixels: comparison with everything that could be drawn there.

No network takes part. What is known beforehand is how many objects there are, where, how large, and which lies over which.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vimaedit.miniature.palette import LOOKS
from vimaedit.miniature.render import line_width, object_coverage, pixel_place, render_without_texture
from vimaedit.miniature.scenes import COLOURS, Background, Scene, SceneObject
from vimaedit.miniature.shapes import tile_side
from vimaedit.miniature.templates import (
    Float32Array,
    background_errors,
    background_templates,
    object_errors,
    object_templates,
    texture,
)
from vimaedit.types import UInt8Array

MAX_SIDE = 128  # larger pictures are made smaller before they are read
STYLE_FACTOR, STYLE_SLACK = 2.0, 40.0  # styles whose background fits this much worse than the best are not looked into

MAX_SHIFT = 4  # px an object may lie beside the place that was told
FIT_ERROR = 400.0  # squared error per pixel of the object's box, all channels, up to which no better place is looked for


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an object is: centre and size in thousandths of the picture's side."""

    x: int
    y: int
    size: int


def layout_of(scene: Scene) -> tuple[Place, ...]:
    """Return where the objects of a scene are, lowest first."""
    return tuple(Place(x=each.x, y=each.y, size=each.size) for each in scene.objects)


def read_scene(image: UInt8Array, layout: Sequence[Place]) -> Scene:
    """Name background, style and objects of a picture (side, side, 3), an even side of at least 32 pixels.

    The objects of the scene returned are in the order of `layout` and lie where it says; the angle of a tilt is approximate.

    Raises: ValueError for a picture of another shape.
    """
    if image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3 or image.shape[0] % 2 or len(image) < 32:
        raise ValueError(f"image: got shape {image.shape}; allowed: (side, side, 3) with an even side of at least 32")
    size = min(len(image), MAX_SIDE)
    if len(image) > size:
        image = np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))
    picture = image.astype(np.float32)
    outside = 1 - np.max([_disc(place, size) for place in layout], axis=0) if layout else np.ones((size, size), np.float32)
    errors = background_errors(picture, outside.astype(np.float32))
    best: dict[str, tuple[float, Background]] = {}
    for error, (style, background) in zip(errors.tolist(), background_templates(), strict=True):
        if style not in best or error < best[style][0]:
            best[style] = (error, background)
    limit = min(error for error, _ in best.values()) * STYLE_FACTOR + STYLE_SLACK
    readings = []
    for style, (error, background) in best.items():
        if error <= limit:
            scene, rest = _read_objects(picture, layout, Scene(objects=(), background=background, style=style))
            readings.append((error * 3 * float(outside.sum()) + rest, scene))
    return min(readings, key=lambda reading: reading[0])[1]


def attributes_of(scene: Scene) -> dict[str, str]:
    """Return what the reader is asked for, by name: `style`, `background.colour`, `objects.0.shape`, ..."""
    background = scene.background
    named = {
        "style": scene.style,
        "background.colour": " ".join(background.colours),
        "background.pattern": background.pattern,
    }
    for n, each in enumerate(scene.objects):
        for name, value in (
            ("shape", each.shape),
            ("colour", each.colour),
            ("material", each.material),
            ("pose", each.pose),
            ("face", each.face or "none"),
        ):
            named[f"objects.{n}.{name}"] = value
    return named


def _read_objects(picture: Float32Array, layout: Sequence[Place], empty: Scene) -> tuple[Scene, float]:
    """Name the objects of a picture, given background and style; return the squared error left where they are."""
    size = len(picture)
    bare = picture / texture(empty.style, size)
    behind = render_without_texture(empty, size).astype(np.float32)
    found = [_read_object(bare, behind, _nearest(layout, n, size), layout[n], empty.style) for n in range(len(layout))]
    objects = [each for each, _ in found]
    if _crowded(layout):
        # Now that all are known, each is seen before those below it and only where none lies above it.
        for n in range(len(objects)):
            below = replace(empty, objects=tuple(objects[:n]))
            above = object_coverage(replace(empty, objects=tuple(objects[n + 1 :])), size)
            free = (above == 0).all(axis=0).astype(np.float32)
            found[n] = _read_object(bare, render_without_texture(below, size).astype(np.float32), free, layout[n], empty.style)
            objects[n] = found[n][0]
    return replace(empty, objects=tuple(objects)), sum(error for _, error in found)


def _read_object(
    picture: Float32Array, behind: Float32Array, weight: Float32Array, place: Place, style: str
) -> tuple[SceneObject, float]:
    """Name one object; where the best template does not fit, look for a better place nearby."""
    size = len(picture)
    x, y, side = pixel_place(place.x, place.y, place.size, size)
    line = line_width(style, size)
    half = tile_side(side, line) // 2

    def errors_at(dx: int, dy: int) -> Float32Array:
        windows = [_window(values, x + dx, y + dy, half) for values in (picture, behind, weight[..., None])]
        return object_errors(windows[0], windows[1], windows[2][..., 0], side, line, style)

    tried = {(0, 0): errors_at(0, 0)}
    at = (0, 0)
    while float(tried[at].min()) > FIT_ERROR * side**2:
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            near = (at[0] + dx, at[1] + dy)
            if near not in tried and max(map(abs, near)) <= MAX_SHIFT:
                tried[near] = errors_at(*near)
        better = min(tried, key=lambda offset: float(tried[offset].min()))
        if better == at:
            break
        at = better
    errors = tried[at]
    template, colour = np.unravel_index(int(errors.argmin()), errors.shape)
    best = object_templates()[template]
    return (
        SceneObject(
            shape=best.shape,
            colour=COLOURS[colour],
            material=best.material,
            face=best.face,
            x=place.x,
            y=place.y,
            size=place.size,
            angle=best.angle,
        ),
        float(errors.min()),
    )


def _window(values: Float32Array, x: int, y: int, half: int) -> Float32Array:
    """Return the square of 2 * half pixels around a pixel, zero beyond the picture."""
    padded = np.pad(values, ((half, half), (half, half), (0, 0)))
    return padded[y : y + 2 * half, x : x + 2 * half]


def _disc(place: Place, size: int) -> Float32Array:
    """Return 1 where an object may be, (size, size)."""
    reach = place.size * 0.64 + max(look.line for look in LOOKS.values()) + 1000 / size
    return (_distance(place, size) <= reach).astype(np.float32)


def _nearest(layout: Sequence[Place], index: int, size: int) -> Float32Array:
    """Return 1 where no other object is nearer, measured in sizes, (size, size)."""
    own = _distance(layout[index], size) / layout[index].size
    others = [_distance(place, size) / place.size for n, place in enumerate(layout) if n != index]
    return np.all([own <= other for other in others], axis=0).astype(np.float32) if others else np.ones_like(own)


def _distance(place: Place, size: int) -> Float32Array:
    n = (np.arange(size, dtype=np.float32) + 0.5) / size * 1000
    return np.hypot(n[None, :] - place.x, n[:, None] - place.y)


def _crowded(layout: Sequence[Place]) -> bool:
    """Whether the tiles of two objects may touch."""
    return any(math.dist((a.x, a.y), (b.x, b.y)) < (a.size + b.size) * 0.85 for a, b in itertools.combinations(layout, 2))
