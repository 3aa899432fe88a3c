"""The scene world: how scenes are spread, what training may see, what is drawn."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from vimaedit.scenes.draws import Draws
from vimaedit.scenes.palette import BACKGROUND_RGB, LOOKS, OBJECT_RGB
from vimaedit.scenes.render import background_pixels, object_coverage, object_pixels, render_scene
from vimaedit.scenes.sampling import CLOSE_UP_SIZES, sample_close_up, sample_scene
from vimaedit.scenes.scenes import (
    BACKGROUND_COLOURS,
    COLOURS,
    FACES,
    MATERIALS,
    POSES,
    SHAPES,
    SPLIT_SEEDS,
    STYLES,
    Background,
    Scene,
    SceneObject,
    may_train_on,
    scene_from_json,
    scene_to_json,
    split_of_pair,
    split_of_seed,
)
from vimaedit.scenes.shapes import outlines

COUNT = 499
SIZE = 61
PLAIN = SceneObject(shape="square", colour="red", material="plain", face=None, x=400, y=600, size=400, angle=0)
WHITE = Background(colour="white", pattern="plain")


@pytest.fixture(scope="module", params=sorted(SPLIT_SEEDS))
def split(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def sample(split: str) -> list[Scene]:
    return [sample_scene(SPLIT_SEEDS[split].start + n) for n in range(COUNT)]


def share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


def test_close_ups_hold_one_object_that_training_may_show() -> None:
    start = SPLIT_SEEDS["train"].start
    close_ups = [sample_close_up(start + n) for n in range(COUNT)]
    assert close_ups == [sample_close_up(start + n) for n in range(COUNT)]
    assert all(len(each.objects) == 1 and may_train_on(each) for each in close_ups)
    sizes = sorted(each.objects[0].size for each in close_ups)
    assert CLOSE_UP_SIZES[0] <= sizes[0] and sizes[-1] <= CLOSE_UP_SIZES[1]
    assert sizes[COUNT // 2] > 500  # larger than an object of any benchmark
    assert {each.objects[0].shape for each in close_ups} == set(SHAPES)


def test_scenes_are_not_easy(sample: list[Scene]) -> None:
    assert all(150 <= each.size <= 450 for scene in sample for each in scene.objects)
    several = [scene.objects for scene in sample if len(scene.objects) > 1]
    assert len(several) / COUNT >= 0.5
    alike = [any(a.colour == b.colour or a.shape == b.shape for a, b in combinations(objects, 2)) for objects in several]
    assert share(alike) >= 0.5
    assert share([scene.background.pattern != "plain" for scene in sample]) >= 1 / 3


def test_everything_named_occurs(sample: list[Scene]) -> None:
    objects = [each for scene in sample for each in scene.objects]
    assert {each.shape for each in objects} == set(SHAPES)
    assert {each.colour for each in objects} == set(COLOURS)
    assert {each.material for each in objects} == set(MATERIALS)
    assert {each.face for each in objects} == {None, *FACES}
    assert {each.pose for each in objects} == {pose for poses in POSES.values() for pose in poses}
    assert {scene.style for scene in sample} == set(STYLES)
    assert {colour for scene in sample for colour in scene.background.colours} == set(BACKGROUND_COLOURS)
    assert {len(scene.objects) for scene in sample} == {1, 2, 3}


def test_objects_can_be_told_apart_and_seen(sample: list[Scene]) -> None:
    for scene in sample:
        pairs = [(each.colour, each.shape) for each in scene.objects]
        assert len(set(pairs)) == len(pairs)
        assert not {each.colour for each in scene.objects} & set(scene.background.colours)
        coverage = object_coverage(scene, SIZE) > 127
        for n, each in enumerate(scene.objects):
            assert each.pose in POSES[each.shape]
            assert each.face is None or each.may_have_face
            assert each.size // 2 < min(each.x, each.y, 1000 - each.x, 1000 - each.y)
            assert (coverage[n] & ~coverage[n + 1 :].any(axis=0)).sum() >= 0.6 * coverage[n].sum()


def test_some_objects_overlap(sample: list[Scene]) -> None:
    overlapping = [bool((object_coverage(scene, SIZE) > 127).sum(axis=0).max() > 1) for scene in sample]
    assert 0.01 <= share(overlapping) <= 0.2


def test_pairs_held_out_of_training_occur_in_their_split_only(split: str, sample: list[Scene]) -> None:
    groups = [split_of_pair(colour, shape) for colour, shape in product(COLOURS, SHAPES)]
    assert groups.count("test") / len(groups) >= 0.1
    assert groups.count("validation") / len(groups) >= 0.1
    seen = {(each.colour, each.shape) for scene in sample for each in scene.objects}
    assert {split_of_pair(*pair) for pair in seen} == {"train", split}
    held_out = {pair for pair in product(COLOURS, SHAPES) if split_of_pair(*pair) == split}
    assert held_out <= seen
    assert all(may_train_on(scene) for scene in sample) == (split == "train")
    novel = share([not may_train_on(scene) for scene in sample])
    assert novel == 0 if split == "train" else novel >= 0.25


def test_training_shows_every_colour_and_every_shape_in_variety() -> None:
    pairs = [pair for pair in product(COLOURS, SHAPES) if split_of_pair(*pair) == "train"]
    for value, place in [(colour, 0) for colour in COLOURS] + [(shape, 1) for shape in SHAPES]:
        assert sum(pair[place] == value for pair in pairs) >= 6


def test_a_scene_follows_from_its_seed_alone() -> None:
    start = SPLIT_SEEDS["test"].start
    assert sample_scene(start + 7) == sample_scene(start + 7)
    assert len({sample_scene(start + n) for n in range(97)}) == 97


def test_seeds_belong_to_one_split() -> None:
    for split, seeds in SPLIT_SEEDS.items():
        assert split_of_seed(seeds.start) == split_of_seed(seeds.stop - 1) == split
    with pytest.raises(ValueError, match=rf"seed: got -1; allowed: 0 to {3 * 2**60 - 1}"):
        sample_scene(-1)
    with pytest.raises(ValueError, match=f"seed: got {3 * 2**60}; allowed"):
        split_of_seed(3 * 2**60)


def test_scenes_survive_json(sample: list[Scene]) -> None:
    assert [scene_from_json(scene_to_json(scene)) for scene in sample[:97]] == sample[:97]


def test_draws_are_uniform_and_keyed_by_seed_and_stream() -> None:
    draws = Draws(3, 0)
    counts = np.bincount([draws.below(7) for _ in range(7007)], minlength=7)
    assert len(counts) == 7 and abs(counts - 1001).max() < 150
    numbers = [[Draws(seed, stream).below(2**40) for _ in range(1)] for seed, stream in product((3, 5), (0, 1))]
    assert len({number for (number,) in numbers}) == 4
    assert {Draws(seed, 0).between(-2, 2) for seed in range(97)} == {-2, -1, 0, 1, 2}
    assert sorted(Draws(11, 0).shuffled("scene")) == sorted("scene")
    assert abs(sum(Draws(seed, 2).chance(30) for seed in range(997)) / 997 - 0.3) < 0.05


def test_pixels_stay_what_they_are() -> None:
    digest = hashlib.sha256()
    for n in range(23):
        digest.update(render_scene(sample_scene(SPLIT_SEEDS["validation"].start + n), 67).tobytes())
    assert digest.hexdigest() == "204544229109fc8833d12bfcb8b2024fde2c84033dbcea35e58239ed1851e628"


@pytest.mark.parametrize("size", [31, 64, 128, 257])
def test_any_size_shows_the_same(size: int) -> None:
    scene = Scene(objects=(PLAIN,), background=WHITE, style="picture")
    picture = render_scene(scene, size)
    assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
    inner, outer = 0.8 * 0.84 * 200, 1.1 * 0.84 * 200
    at = (np.arange(size) + 0.5) * 1000 / size
    x, y = np.abs(at[None, :] - PLAIN.x), np.abs(at[:, None] - PLAIN.y)
    assert (picture[np.maximum(x, y) < inner] == OBJECT_RGB["red"]).all()
    assert (picture[np.maximum(x, y) > outer + 1000 / size] == BACKGROUND_RGB["white"]).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_are_smooth_and_areas_right(shape: str) -> None:
    """Compare the covered area with the polygon's, by the shoelace formula."""
    scene = Scene(objects=(replace(PLAIN, shape=shape, x=500, y=500, size=450),), background=WHITE, style="picture")
    coverage = object_coverage(scene, 211)[0]
    area = 0.0
    for n, points in enumerate(outlines(shape)):
        following = points[1:] + points[:1]
        own = abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in zip(points, following, strict=True))) / 2
        area += -own if n else own
    side = round(0.45 * 211)
    assert coverage.sum() / 255 == pytest.approx(area * (side / 2) ** 2, rel=0.03)
    assert ((coverage > 0) & (coverage < 255)).sum() > side // 4


def test_outlines_stay_near_the_box_they_fill() -> None:
    for shape in SHAPES:
        reach = [abs(value) for points in outlines(shape) for point in points for value in point]
        assert 0.8 <= max(reach) <= 1.25
    with pytest.raises(ValueError, match="shape: got 'blob'"):
        outlines("blob")


def test_a_turn_turns_the_outline() -> None:
    upright = Scene(objects=(replace(PLAIN, shape="heart", x=500, y=500),), background=WHITE, style="picture")
    turned = replace(upright, objects=(replace(upright.objects[0], angle=180),))
    straight, upside_down = (object_coverage(scene, 128)[0].astype(int) for scene in (upright, turned))
    # The centre of a turn is a pixel's corner: turning by half flips both axes about it.
    assert np.abs(straight[::-1, ::-1] - upside_down).mean() < 1
    assert np.abs(straight - upside_down).mean() > 3


def test_later_objects_hide_earlier_ones() -> None:
    near = replace(PLAIN, colour="blue", x=PLAIN.x + 150)
    scene = Scene(objects=(PLAIN, near), background=WHITE, style="picture")
    below, above = object_pixels(scene, 0, 101), object_pixels(scene, 1, 101)
    background = background_pixels(scene, 101)
    assert (below | above | background).all()
    row, column = 101 * PLAIN.y // 1000, 101 * (PLAIN.x + 100) // 1000
    assert above[row, column] and not below[row, column] and not background[row, column]
    assert tuple(render_scene(scene, 101)[row, column]) == OBJECT_RGB["blue"]
    # Along an edge of the upper one, both are seen in one pixel.
    assert (below & above).any()


@pytest.mark.parametrize("style", STYLES)
def test_styles_look_different_and_draw_outlines(style: str) -> None:
    pictures = {name: render_scene(Scene(objects=(PLAIN,), background=WHITE, style=name), 128) for name in STYLES}
    for other in set(STYLES) - {style}:
        assert np.abs(pictures[style].astype(int) - pictures[other]).mean() > 1
    row = pictures[style][128 * PLAIN.y // 1000].astype(int).sum(axis=-1)
    edge = row[128 * (PLAIN.x - 168) // 1000 - 2 :][:5].min()
    inside = row[128 * PLAIN.x // 1000]
    assert (edge < inside - 40) == (LOOKS[style].line > 0)


@pytest.mark.parametrize("material", MATERIALS)
def test_materials_pattern_the_object_in_its_own_shades(material: str) -> None:
    scene = Scene(objects=(replace(PLAIN, material=material),), background=WHITE, style="picture")
    middle = render_scene(scene, 128)[57:97, 31:71].reshape(-1, 3).astype(int)
    spread = middle.std(axis=0).max()
    assert (spread == 0) == (material == "plain")
    # Red in every shade.
    assert (middle[:, 0] > middle[:, 1] + 40).mean() > 0.95


def test_a_tilt_keeps_to_its_range() -> None:
    angles = [each.angle for n in range(COUNT) for each in sample_scene(n).objects]
    tilts = {min(angle, 360 - angle) for angle in angles} - {0, 180}
    assert min(tilts) == 25 and max(tilts) == 40
    assert math.isclose(sum(angle > 180 for angle in angles), sum(25 <= angle <= 40 for angle in angles), rel_tol=0.4)
