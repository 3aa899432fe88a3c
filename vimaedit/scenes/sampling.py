"""Scenes from seeds."""

from __future__ import annotations

from collections.abc import Sequence

from vimaedit.scenes.draws import Draws
from vimaedit.scenes.palette import stands_out
from vimaedit.scenes.scenes import (
    BACKGROUND_COLOURS,
    BACKGROUND_PATTERNS,
    COLOURS,
    FACES,
    MATERIALS,
    POSES,
    SHAPES,
    STYLES,
    TILT,
    UPSIDE_DOWN,
    Background,
    Scene,
    SceneObject,
    split_of_pair,
    split_of_seed,
)

MIN_SIZE = 300  # thousandths of the side
MAX_SIZES = {1: 500, 2: 420}  # by the number of objects
MARGIN = 20  # between an object and the picture's edge
GAP = 35  # at least, between the furthest corners of two objects: room for their outlines
REACH_PERCENT = 63  # of an object's size, from its centre to the furthest corner that any shape has
PLACE_TRIES = 12
SHARED_PERCENT = 20  # second objects that share colour or shape with the first one; the others share neither
NOVEL_PERCENT = 25  # objects of a pair that training never shows, outside training

Pair = tuple[str, str]  # colour, shape


def sample_scene(seed: int) -> Scene:
    """Return the scene of a seed; the range that holds the seed (`SPLIT_SEEDS`) decides which pairs may occur.

    Raises: ValueError for a seed in no range.
    """
    split = split_of_seed(seed)
    return draw_scene(Draws(seed, 0), split)


def draw_scene(draws: Draws, split: str) -> Scene:
    """Draw one scene with the pairs of colour and shape that `split` may show."""
    style = STYLES[0] if draws.chance(55) else draws.choose(STYLES[1:])
    background = draw_background_of(draws)
    count = 1 if draws.chance(60) else 2
    objects: list[SceneObject] = []
    while len(objects) < count:
        pair = draw_pair(draws, split, background, objects)
        size = draws.between(MIN_SIZE, MAX_SIZES[count])
        place = draw_place(draws, size, objects)
        if place is None:
            objects.clear()  # nothing fits beside the first: both are drawn again
        else:
            objects.append(draw_object(draws, pair, size, place))
    return Scene(objects=tuple(objects), background=background, style=style)


def draw_background_of(draws: Draws) -> Background:
    """Draw a background; three of ten are patterned or graded."""
    pattern = BACKGROUND_PATTERNS[0] if draws.chance(70) else draws.choose(BACKGROUND_PATTERNS[1:])
    colour, second = draws.shuffled(BACKGROUND_COLOURS)[:2]
    return Background(colour=colour, pattern=pattern, second=second if pattern == "gradient" else None)


def allowed_pairs(split: str, background: Background, others: Sequence[SceneObject]) -> list[Pair]:
    """List the pairs of colour and shape that a split may show, seen on the background and not there yet."""
    taken = {(each.colour, each.shape) for each in others}
    return [
        (colour, shape)
        for colour in COLOURS
        if stands_out(colour, background)
        for shape in SHAPES
        if (colour, shape) not in taken and split_of_pair(colour, shape) in ("train", split)
    ]


def draw_pair(draws: Draws, split: str, background: Background, others: Sequence[SceneObject]) -> Pair:
    """Draw colour and shape of a further object."""
    pairs = allowed_pairs(split, background, others)
    for other in others:
        if draws.chance(SHARED_PERCENT):
            same = draws.below(2)
            pairs = [pair for pair in pairs if pair[same] == (other.colour, other.shape)[same]] or pairs
        else:
            pairs = [pair for pair in pairs if pair[0] != other.colour and pair[1] != other.shape]
    if split != "train" and draws.chance(NOVEL_PERCENT):
        pairs = [pair for pair in pairs if split_of_pair(*pair) == split] or pairs
    return draws.choose(pairs)


def draw_place(draws: Draws, size: int, others: Sequence[SceneObject]) -> tuple[int, int] | None:
    """Draw a centre at which an object of this size overlaps none of the others, whatever their shapes; None if none is found."""
    low, high = size // 2 + MARGIN, 1000 - size // 2 - MARGIN
    for _ in range(PLACE_TRIES):
        x, y = draws.between(low, high), draws.between(low, high)
        if has_room((x, y), size, others):
            return x, y
    return None


def has_room(place: tuple[int, int], size: int, others: Sequence[SceneObject]) -> bool:
    """Say whether an object of this size at this centre overlaps none of the others, whatever their shapes."""
    x, y = place
    reaches = [(size + other.size) * REACH_PERCENT // 100 + GAP for other in others]
    return all((x - o.x) ** 2 + (y - o.y) ** 2 >= reach**2 for o, reach in zip(others, reaches, strict=True))


def draw_object(draws: Draws, pair: Pair, size: int, place: tuple[int, int]) -> SceneObject:
    """Draw what is still open of an object: material, pose and face."""
    colour, shape = pair
    material = MATERIALS[0] if draws.chance(45) else draws.choose(MATERIALS[1:])
    pose = "upright" if draws.chance(50) else draws.choose(POSES[shape])
    bare = SceneObject(
        shape=shape,
        colour=colour,
        material=material,
        face=None,
        x=place[0],
        y=place[1],
        size=size,
        angle=draw_angle(draws, pose),
    )
    if bare.may_have_face and draws.chance(60):
        return SceneObject(**{**vars(bare), "face": draws.choose(FACES)})
    return bare


def draw_angle(draws: Draws, pose: str) -> int:
    """Draw the angle of a pose, degrees clockwise; only a tilt leaves room."""
    if pose in ("upright", "upside-down"):
        return UPSIDE_DOWN if pose == "upside-down" else 0
    tilt = draws.between(*TILT)
    return tilt if pose == "tilted right" else 360 - tilt
