"""Find objects in a picture of the scene world without being told where they are."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from vimaedit.scenes.reading.find_fit import explained, settle
from vimaedit.scenes.reading.find_outline import best_outlines
from vimaedit.scenes.reading.reader import (
    GUESSES,
    FirstReading,
    Place,
    all_templates,
    best_guesses,
    best_reading,
    likely_backgrounds,
    object_gains,
    picture_of,
    without_texture,
)
from vimaedit.scenes.reading.templates import Float32Array, soften
from vimaedit.scenes.render import object_coverage, render_scene, render_without_texture
from vimaedit.scenes.scenes import Scene, SceneObject
from vimaedit.types import BoolArray, UInt8Array

MAX_OBJECTS = 3  # one more than any scene has: too many are noticed
FOREGROUND = 450.0  # squared error over all channels, after blurring, from which a pixel is not the background's
RIM = 2  # px on either side of an object's edge in which nothing is decided
OUTLINES = 3  # shapes and poses that are looked into
MIN_WON = 40.0  # px that an outline must explain beyond those it covers in vain
ROUNDS = 2  # of naming an object and finding its place
REACH = 6  # px by which an outline's place may be wrong
FIRST_STEPS = (1.0, 1.3)  # times an outline's size, at which an object is looked for first
SMALLEST = 220  # thousandths of the side; smaller things are no objects
MAX_HIDDEN = 0.2  # share of the smaller of two objects that the other one may cover: none does, but places are approximate
MIN_SHARE = 0.5  # of the squared error where it is that an object has to explain
MIN_ERROR = 400.0  # squared error per pixel of the blurred picture, all channels, below which there is nothing to see
STRANGE = 1300.0  # squared error over all channels of the mean over a square from which it is taken for a thing
STRANGE_REACH = 2  # px from the square's centre to its sides
STRANGE_RIM = 3  # px around objects in which nothing is taken for strange


def read_unknown(image: UInt8Array, max_objects: int = MAX_OBJECTS) -> Scene:
    """Name background, style and objects of a picture (side, side, 3) of which nothing is known.

    Raises: ValueError for a picture that `read_scene` would refuse.
    """
    picture = picture_of(image)
    size = len(picture)
    first_look = likely_backgrounds(picture, np.ones((size, size), dtype=np.float32))
    # Now without what is no background; narrow strips are edges of its pattern.
    core = ~spread(object_votes(picture, first_look[0]) <= 0, RIM)
    outside = (~spread(core, 2 * RIM)).astype(np.float32)
    firsts = []
    for scene in likely_backgrounds(picture, outside):
        while len(scene.objects) < max_objects:
            found = missing_object(picture, scene)
            if found is None:
                break
            scene = replace(scene, objects=(*scene.objects, found))
        firsts.append(FirstReading(scene, (all_templates(),) * len(scene.objects)))
    return best_reading(picture, firsts)


def missing_object(picture: Float32Array, scene: Scene) -> SceneObject | None:
    """Return the most plainly seen object that a picture, as `picture_of` returns it, has and the scene lacks; None: there is none."""
    size, style = len(picture), scene.style
    votes = object_votes(picture, scene)
    weight = (votes != 0).astype(np.float32)
    bare = without_texture(picture, style, False)
    behind = render_without_texture(scene, size).astype(np.float32)
    covered = object_coverage(scene, size) > 0
    options = []
    for won, *pixels in best_outlines(votes, OUTLINES):
        if won < MIN_WON:
            break
        x, y, side = (round(value * 1000 / size) for value in pixels)
        near = _look_closer(bare, behind, weight, Place(x=x, y=y, size=side), style)
        if near is None:
            continue
        own = object_coverage(replace(scene, objects=(near,)), size)[0] > 0
        gain, error = _gain(picture, scene, replace(scene, objects=(*scene.objects, near)), own & (votes != 0))
        hidden = max(((own & each).sum() / min(own.sum(), each.sum()) for each in covered), default=0.0)
        # What is explained counts, and what is covered in vain counts against it.
        if gain >= MIN_SHARE * error and hidden <= MAX_HIDDEN:
            options.append((2 * gain - error, near))
    return max(options, key=lambda option: option[0])[1] if options else None


def _look_closer(
    picture: Float32Array, behind: Float32Array, weight: Float32Array, place: Place, style: str
) -> SceneObject | None:
    """Return the object that explains most around a place, found by naming and moving in turn; None: only specks would."""
    best: tuple[float, SceneObject] | None = None
    # Of a pale object the votes may show the middle only.
    places = [replace(place, size=round(place.size * step)) for step in FIRST_STEPS]
    for _ in range(ROUNDS):
        guesses = []
        for start in places:
            gains, _ = object_gains(picture, behind, weight, start, style, False, all_templates())
            guesses += best_guesses(gains, all_templates(), start, GUESSES)
        for guess in guesses:
            near = settle(picture, behind, weight, guess, style, REACH)
            gain = explained(picture, behind, weight, near, style)
            if near.size >= SMALLEST and (best is None or gain > best[0]):
                best = gain, near
        if best is None:
            return None
        places = [Place(x=best[1].x, y=best[1].y, size=best[1].size)]
    return None if best is None else best[1]


def object_votes(picture: Float32Array, scene: Scene) -> Float32Array:
    """Return 1 for pixels that the scene does not explain, -1 for those it does, 0 where its objects may hide what is there.

    Shapes: `picture` (size, size, 3); returns (size, size).
    """
    error = (soften(residual(picture, scene)) ** 2).sum(axis=-1)
    votes = np.where(error > FOREGROUND, np.float32(1), np.float32(-1))
    covered = object_coverage(scene, len(picture)) > 0
    for each in covered:
        core = ~spread(~each, RIM)
        votes[spread(each, RIM) & ~core] = 0
        votes[core & (votes < 0)] = 0
    return votes


def residual(picture: Float32Array, scene: Scene) -> Float32Array:
    """Return the picture less the scene's drawing, and less the tone by which the whole background differs, (size, size, 3)."""
    gap = picture - render_scene(scene, len(picture)).astype(np.float32)
    free = (object_coverage(scene, len(picture)) == 0).all(axis=0)
    tone = np.median(gap[free], axis=0) if free.any() else np.zeros(3)
    return np.asarray(gap - tone, dtype=np.float32)


def presence(picture: Float32Array, scene: Scene) -> list[bool]:
    """Return for every object of a scene whether the picture (size, size, 3) plainly shows it rather than what lies behind it."""
    shown = []
    coverage = object_coverage(scene, len(picture))
    for n in range(len(scene.objects)):
        without = replace(scene, objects=scene.objects[:n] + scene.objects[n + 1 :])
        seen = (coverage[n] > 0) & (coverage[n + 1 :] == 0).all(axis=0)
        gain, error = _gain(picture, without, scene, seen)
        shown.append(gain >= MIN_SHARE * error and error >= MIN_ERROR * seen.sum())
    return shown


def _gain(picture: Float32Array, without: Scene, scene: Scene, where: BoolArray) -> tuple[float, float]:
    """Return by how much the squared error of the blurred picture falls from one scene to the other, and the error before."""
    before, after = (
        float((soften(picture - render_scene(each, len(picture)).astype(np.float32))[where] ** 2).sum())
        for each in (without, scene)
    )
    return before - after, before


def strange_pixels(picture: Float32Array, scene: Scene) -> BoolArray:
    """Return the pixels (size, size) around which a picture differs from the scene's drawing on the whole, away from its objects.

    The differences are averaged before they are squared: fine texture that is a little out of place does not matter.
    """
    size = len(picture)
    free = ~spread(np.any(object_coverage(scene, size) > 0, axis=0), STRANGE_RIM)
    weight = free.astype(np.float32)[..., None]
    # A pattern that lies a pixel beside its place is no thing either.
    gap = np.pad(residual(picture, scene) - picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    errors = []
    for down, across in itertools.product(range(3), range(3)):
        moved = picture + gap[down : down + size, across : across + size]
        sums = _box_sums(np.concatenate([moved * weight, weight], axis=-1), STRANGE_REACH)
        errors.append(((sums[..., :3] / np.maximum(sums[..., 3:], 1)) ** 2).sum(axis=-1))
    enough = sums[..., 3] > 0.5 * (2 * STRANGE_REACH + 1) ** 2
    strange: BoolArray = free & enough & (np.min(errors, axis=0) > STRANGE)
    return strange


def _box_sums(values: Float32Array, reach: int) -> Float32Array:
    """Return the sums over squares of 2 * reach + 1 pixels around each, (h, w, channels), nothing beyond the edges."""
    for axis in (0, 1):
        padding = [(reach + 1, reach) if n == axis else (0, 0) for n in range(3)]
        total = np.moveaxis(np.pad(values, padding).astype(np.float64).cumsum(axis=axis), axis, 0)
        values = np.moveaxis(total[2 * reach + 1 :] - total[: -2 * reach - 1], 0, axis).astype(np.float32)
    return values


def spread(mask: BoolArray, reach: int) -> BoolArray:
    """Return the pixels (h, w) with one of the mask's within `reach` px along both axes."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    spread: BoolArray = np.asarray(image.filter(ImageFilter.MaxFilter(2 * reach + 1))) > 0
    return spread
