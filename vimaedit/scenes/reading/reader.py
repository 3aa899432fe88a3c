"""Name what a picture of the scene world shows, from its pixels: comparison with everything that could be drawn there.

No network takes part. What is known beforehand is how many objects there are, where, and how large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vimaedit.scenes.palette import LOOKS
from vimaedit.scenes.reading.find_fit import settle
from vimaedit.scenes.reading.templates import (
    Float32Array,
    background_errors,
    background_templates,
    object_errors,
    object_templates,
    soften,
    texture,
)
from vimaedit.scenes.render import line_width, object_coverage, pixel_place, render_scene, render_without_texture
from vimaedit.scenes.scenes import COLOURS, Background, Scene, SceneObject
from vimaedit.scenes.shapes import tile_side
from vimaedit.types import UInt8Array

MAX_SIDE = 128  # larger pictures are made smaller before they are read
STYLE_FACTOR, STYLE_SLACK = 2.0, 40.0  # styles whose background fits this much worse than the best are not looked into
SHARP_ERROR = 12.0  # squared error per pixel and channel up to which a picture is not looked at as a blurred one

MAX_SHIFT = 4  # px an object may lie beside the place that was told
FIT_ERROR = 600.0  # squared error per pixel of the object's box, all channels, up to which no better place is looked for
GUESSES = 3  # shapes for which a better place is looked for
CANDIDATES = 32  # templates that are looked at again
SECOND_FACTOR = 1.5  # styles that explain the picture this much worse at first sight are not looked into


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an object is: centre and size in thousandths of the picture's side."""

    x: int
    y: int
    size: int


def layout_of(scene: Scene) -> tuple[Place, ...]:
    """Return where the objects of a scene are."""
    return tuple(Place(x=each.x, y=each.y, size=each.size) for each in scene.objects)


def read_scene(image: UInt8Array, layout: Sequence[Place]) -> Scene:
    """Name background, style and objects of a picture (side, side, 3), an even side of at least 32 pixels.

    The objects of the scene returned are in the order of `layout` and lie where it says or, where that fits badly, near there;
    the angle of a tilt is approximate.

    Raises: ValueError for a picture of another shape.
    """
    return read_picture(picture_of(image), layout)


def read_picture(picture: Float32Array, layout: Sequence[Place]) -> Scene:
    """Do as `read_scene` does, for a picture as `picture_of` returns it."""
    size = len(picture)
    outside = 1 - np.max([disc(place, size) for place in layout], axis=0) if layout else np.ones((size, size), np.float32)
    empty = likely_backgrounds(picture, outside.astype(np.float32))
    return best_reading(picture, [first_reading(picture, layout, scene) for scene in empty])


@dataclass(frozen=True, eq=False)
class FirstReading:
    """What a picture shows at first sight, and which templates each object may be, best first."""

    scene: Scene
    candidates: tuple[NDArray[np.intp], ...]


def best_reading(picture: Float32Array, firsts: Sequence[FirstReading]) -> Scene:
    """Look again at the likely ones of several first readings, and return what explains the picture best."""
    errors = [picture_error(picture, first.scene, False) for first in firsts]
    readings = []
    for error, first in zip(errors, firsts, strict=True):
        if error > min(errors) * SECOND_FACTOR + SHARP_ERROR:
            continue
        for soft in (False, True):
            scene = read_again(picture, first, soft)
            error = picture_error(picture, scene, soft)
            readings.append((error, scene))
            if error <= SHARP_ERROR:
                break
    return min(readings, key=lambda reading: reading[0])[1]


def picture_of(image: UInt8Array) -> Float32Array:
    """Return a picture as it is read: in floating point and no larger than `MAX_SIDE`.

    Raises: ValueError for a picture that is not square, of an odd side or less than 32 pixels wide.
    """
    if image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3 or image.shape[0] % 2 or len(image) < 32:
        raise ValueError(f"image: got shape {image.shape}; allowed: (side, side, 3) with an even side of at least 32")
    if len(image) > MAX_SIDE:
        image = np.array(Image.fromarray(image).resize((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX))
    return image.astype(np.float32)


def likely_backgrounds(picture: Float32Array, outside: Float32Array) -> list[Scene]:
    """Return the best background of every style that may be the picture's, as empty scenes, the best first.

    Shapes: `picture` (size, size, 3); `outside` (size, size), 0 where objects are known to be.
    """
    best: dict[str, tuple[float, Background]] = {}
    errors = background_errors(picture, outside).tolist()
    for error, (style, background) in zip(errors, background_templates(), strict=True):
        if style not in best or error < best[style][0]:
            best[style] = (error, background)
    order = sorted(best, key=lambda style: best[style][0])
    limit = best[order[0]][0] * STYLE_FACTOR + STYLE_SLACK
    return [Scene(objects=(), background=best[style][1], style=style) for style in order if best[style][0] <= limit]


def picture_error(picture: Float32Array, scene: Scene, soft: bool) -> float:
    """Return the mean squared error per pixel and channel of a scene's drawing, blurred if `soft`."""
    drawn = render_scene(scene, len(picture)).astype(np.float32)
    return float(((picture - (soften(drawn) if soft else drawn)) ** 2).mean())


def attributes_of(scene: Scene) -> dict[str, str]:
    """Return what the reader is asked for, by name: `style`, `background.colour`, `objects.0.shape`, ..."""
    background = scene.background
    named = {
        "style": scene.style,
        "background.colour": " ".join(background.colours),
        "background.pattern": background.pattern,
    }
    for n, each in enumerate(scene.objects):
        named |= {f"objects.{n}.{name}": value for name, value in object_attributes(each).items()}
    return named


def object_attributes(each: SceneObject) -> dict[str, str]:
    """Return what the reader is asked for about one object, by name."""
    return {
        "shape": each.shape,
        "colour": each.colour,
        "material": each.material,
        "pose": each.pose,
        "face": each.face or "none",
    }


def first_reading(picture: Float32Array, layout: Sequence[Place], empty: Scene) -> FirstReading:
    """Name the objects of a picture (size, size, 3) where the layout says, given background and style of `empty`."""
    size = len(picture)
    bare, behind = without_texture(picture, empty.style, False), _behind(empty, size, False)
    objects, candidates = [], []
    for n, place in enumerate(layout):
        gains, _ = object_gains(bare, behind, _nearest(layout, n, size), place, empty.style, False, all_templates())
        order = np.argsort(-gains.max(axis=1))
        objects.append(best_guesses(gains, all_templates(), place, 1)[0])
        candidates.append(order[:CANDIDATES])
    return FirstReading(replace(empty, objects=tuple(objects)), tuple(candidates))


def read_again(picture: Float32Array, first: FirstReading, soft: bool) -> Scene:
    """Name the objects once more: each seen before those below it and only where none lies above it.

    `soft`: whether the picture is taken for a blurred one.
    """
    size, scene = len(picture), first.scene
    bare = without_texture(picture, scene.style, soft)
    found = list(scene.objects)
    for n, candidates in enumerate(first.candidates):
        below = replace(scene, objects=tuple(found[:n]))
        above = object_coverage(replace(scene, objects=tuple(found[n + 1 :])), size)
        free = (above == 0).all(axis=0).astype(np.float32)
        found[n] = _read_object(bare, _behind(below, size, soft), free, found[n], candidates, scene.style, soft)
    return replace(scene, objects=tuple(found))


def _read_object(
    picture: Float32Array,
    behind: Float32Array,
    weight: Float32Array,
    first: SceneObject,
    candidates: NDArray[np.intp],
    style: str,
    soft: bool,
) -> SceneObject:
    """Name one object; where the best template does not fit, look for a better place nearby."""
    place = Place(x=first.x, y=first.y, size=first.size)
    gains, null = object_gains(picture, behind, weight, place, style, soft, candidates)
    options = [(float(gains.max()), best_guesses(gains, candidates, place, 1)[0])]
    if null - options[0][0] > FIT_ERROR * pixel_place(place.x, place.y, place.size, len(picture))[2] ** 2:
        for guess in best_guesses(gains, candidates, place, GUESSES):
            near = settle(picture, behind, weight, guess, style, MAX_SHIFT)
            elsewhere = Place(x=near.x, y=near.y, size=near.size)
            if elsewhere != place:
                alike = np.array([n for n in candidates.tolist() if object_templates()[n].shape == guess.shape])
                there = object_gains(picture, behind, weight, elsewhere, style, soft, alike)[0]
                options.append((float(there.max()), best_guesses(there, alike, elsewhere, 1)[0]))
    return max(options, key=lambda option: option[0])[1]


def object_gains(
    picture: Float32Array,
    behind: Float32Array,
    weight: Float32Array,
    place: Place,
    style: str,
    soft: bool,
    which: NDArray[np.intp],
) -> tuple[Float32Array, float]:
    """Return by how much the squared error falls with an object drawn at a place, and the error without one.

    Shapes: (templates of `which`, colours), scalar.
    """
    size = len(picture)
    x, y, side = pixel_place(place.x, place.y, place.size, size)
    line = line_width(style, size)
    half = tile_side(side, line) // 2
    patch, back, free = (_window(values, x, y, half) for values in (picture, behind, weight[..., None]))
    errors = object_errors(patch, back, free[..., 0], side, line, style, soft, which)
    null = float((free * (patch - back) ** 2).sum())
    return null - errors, null


def best_guesses(gains: Float32Array, which: NDArray[np.intp], place: Place, count: int) -> list[SceneObject]:
    """Return the objects of the largest gains, (templates of `which`, colours), of up to `count` different shapes."""
    guesses: dict[str, SceneObject] = {}
    for row in np.argsort(-gains.max(axis=1)).tolist():
        each = object_templates()[which[row]]
        if each.shape not in guesses:
            guesses[each.shape] = SceneObject(
                shape=each.shape,
                colour=COLOURS[int(gains[row].argmax())],
                material=each.material,
                face=each.face,
                x=place.x,
                y=place.y,
                size=place.size,
                angle=each.angle,
            )
        if len(guesses) == count:
            break
    return list(guesses.values())


def all_templates() -> NDArray[np.intp]:
    """Return the numbers of all object templates."""
    return np.arange(len(object_templates()))


def without_texture(picture: Float32Array, style: str, soft: bool) -> Float32Array:
    """Return a picture (size, size, 3) with the style's texture divided out."""
    grain = texture(style, len(picture))
    return picture / (soften(grain) if soft else grain)


def _behind(scene: Scene, size: int, soft: bool) -> Float32Array:
    drawn = render_without_texture(scene, size).astype(np.float32)
    return soften(drawn) if soft else drawn


def _window(values: Float32Array, x: int, y: int, half: int) -> Float32Array:
    """Return the square of 2 * half pixels around a pixel, which may lie outside; zero beyond the picture."""
    height, width = values.shape[:2]
    reach = half + max(0, -x, -y, x - width, y - height)
    padded = np.pad(values, ((reach, reach), (reach, reach), (0, 0)))
    return padded[y + reach - half : y + reach + half, x + reach - half : x + reach + half]


def disc(place: Place, size: int) -> Float32Array:
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
