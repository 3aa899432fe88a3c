"""The scene world: how scenes are spread, what training may see, what is drawn."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from tests.scene_splits import may_train_on
from vimaedit.scenes.draws import Draws
from vimaedit.scenes.palette import BACKGROUND_RGB, LOOKS, OBJECT_RGB
from vimaedit.scenes.render import background_pixels, object_coverage, object_pixels, render_scene
from vimaedit.scenes.sampling import MAX_SIZES, MIN_SIZE, REACH_PERCENT, sample_scene
from vimaedit.scenes.scenes import (
    BACKGROUND_COLOURS,
    COLOURS,
    FACES,
    LOOK,
    MATERIALS,
    POSES,
    SHAPES,
    SPLIT_SEEDS,
    STYLES,
    Background,
    Scene,
    SceneObject,
    scene_from_json,
    scene_to_json,
    split_of_pair,
    split_of_seed,
)
from vimaedit.scenes.shapes import outline

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


def test_scenes_are_spread_as_stated(sample: list[Scene]) -> None:
    sizes = {
        count: [each.size for scene in sample if len(scene.objects) == count for each in scene.objects] for count in (1, 2)
    }
    for count, drawn in sizes.items():
        assert MIN_SIZE <= min(drawn) < MIN_SIZE + 15 and MAX_SIZES[count] - 40 < max(drawn) <= MAX_SIZES[count]
    two = [scene.objects for scene in sample if len(scene.objects) == 2]
    assert len(two) / COUNT == pytest.approx(0.4, abs=0.07)
    alike = [a.colour == b.colour or a.shape == b.shape for a, b in two]
    assert share(alike) == pytest.approx(0.2, abs=0.08)
    assert share([scene.background.pattern == "plain" for scene in sample]) == pytest.approx(0.7, abs=0.07)
    assert share([scene.style == STYLES[0] for scene in sample]) == pytest.approx(0.55, abs=0.07)


def test_everything_named_occurs(sample: list[Scene]) -> None:
    objects = [each for scene in sample for each in scene.objects]
    assert {each.shape for each in objects} == set(SHAPES)
    assert {each.colour for each in objects} == set(COLOURS)
    assert {each.material for each in objects} == set(MATERIALS)
    assert {each.face for each in objects} == {None, *FACES}
    assert {each.pose for each in objects} == {pose for poses in POSES.values() for pose in poses}
    assert {scene.style for scene in sample} == set(STYLES)
    assert {colour for scene in sample for colour in scene.background.colours} == set(BACKGROUND_COLOURS)


def test_objects_can_be_told_apart_and_seen(sample: list[Scene]) -> None:
    for scene in sample:
        pairs = [(each.colour, each.shape) for each in scene.objects]
        assert len(set(pairs)) == len(pairs)
        assert not {each.colour for each in scene.objects} & set(scene.background.colours)
        assert (object_coverage(scene, SIZE) > 0).sum(axis=0).max() == 1  # none touches another
        for each in scene.objects:
            assert each.pose in POSES[each.shape]
            assert each.face is None or each.may_have_face
            assert each.size // 2 < min(each.x, each.y, 1000 - each.x, 1000 - each.y)


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
        assert sum(pair[place] == value for pair in pairs) >= 4


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


@pytest.mark.parametrize(("drawn", "other"), [("square", "ring"), ("red", "black"), ("plain", "wooden"), ("white", "brown")])
def test_scenes_of_another_world_are_refused(drawn: str, other: str) -> None:
    text = scene_to_json(Scene(objects=(PLAIN,), background=WHITE, style="picture"))
    with pytest.raises(ValueError, match=f"scene: .*: got '{other}'; allowed: "):
        scene_from_json(text.replace(f'"{drawn}"', f'"{other}"', 1))


def test_scenes_of_an_older_look_are_refused() -> None:
    fields = json.loads(scene_to_json(Scene(objects=(PLAIN,), background=WHITE, style="picture")))
    for older in (fields | {"look": LOOK - 1}, {name: value for name, value in fields.items() if name != "look"}):
        with pytest.raises(ValueError, match=rf"scene: look: got (None|{LOOK - 1}); allowed: {LOOK}, "):
            scene_from_json(json.dumps(older))


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
    assert digest.hexdigest() == "52354a9cd7bec4552261e6d4cbac835ced93a5474324addc4783a6a58c48be2e"


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
    points = outline(shape)
    area = abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True))) / 2
    side = round(0.45 * 211)
    assert coverage.sum() / 255 == pytest.approx(area * (side / 2) ** 2, rel=0.03)
    assert ((coverage > 0) & (coverage < 255)).sum() > side // 4


def test_outlines_stay_near_the_box_they_fill() -> None:
    for shape in SHAPES:
        assert 0.8 <= max(abs(value) for point in outline(shape) for value in point) <= 1.25
        assert max(math.hypot(*point) for point in outline(shape)) / 2 <= REACH_PERCENT / 100
    with pytest.raises(ValueError, match="shape: got 'blob'"):
        outline("blob")


def test_a_turn_turns_the_outline() -> None:
    upright = Scene(objects=(replace(PLAIN, shape="heart", x=500, y=500),), background=WHITE, style="picture")
    turned = replace(upright, objects=(replace(upright.objects[0], angle=180),))
    straight, upside_down = (object_coverage(scene, 128)[0].astype(int) for scene in (upright, turned))
    # The centre of a turn is a pixel's corner: turning by half flips both axes about it.
    assert np.abs(straight[::-1, ::-1] - upside_down).mean() < 1
    assert np.abs(straight - upside_down).mean() > 3


def test_objects_and_background_share_out_the_picture() -> None:
    scene = Scene(
        objects=(PLAIN, replace(PLAIN, shape="circle", colour="blue", x=800, y=200)), background=WHITE, style="picture"
    )
    one, other = object_pixels(scene, 0, 101), object_pixels(scene, 1, 101)
    background = background_pixels(scene, 101)
    assert (one | other | background).all() and not (one & other).any()
    assert tuple(render_scene(scene, 101)[20, 80]) == OBJECT_RGB["blue"] and other[20, 80] and not background[20, 80]
    # Along an edge, object and background are seen in one pixel.
    assert (other & background).any()


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
