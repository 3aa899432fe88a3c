"""Objects are found in pictures of which nothing is told, and compared with what was asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vimaedit.scenes.benchmark import benchmark_seed
from vimaedit.scenes.reading.find import missing_object, presence, read_unknown, strange_pixels
from vimaedit.scenes.reading.find_outline import best_outlines
from vimaedit.scenes.reading.judge_compare import compare_objects
from vimaedit.scenes.reading.reader import object_attributes, picture_of
from vimaedit.scenes.reading.templates import soften
from vimaedit.scenes.render import object_coverage, object_pixels, render_scene
from vimaedit.scenes.sampling import sample_scene
from vimaedit.scenes.scenes import Background, Scene, SceneObject

HEART = SceneObject(shape="heart", colour="red", material="plain", face=None, x=290, y=300, size=310, angle=0)
TRIANGLE = replace(HEART, shape="triangle", colour="green", material="striped", x=700, y=690, size=320, angle=327)
SCENE = Scene(objects=(HEART, TRIANGLE), background=Background(colour="yellow", pattern="plain"), style="picture")


def validation(index: int) -> Scene:
    return sample_scene(benchmark_seed("validation", 1, index))


@pytest.mark.parametrize(("count", "right"), [(4, 4), pytest.param(19, 18, marks=pytest.mark.slow)])
def test_scenes_are_read_without_being_told_the_layout(count: int, right: int) -> None:
    scenes = [validation(n) for n in range(count)]
    results = [compare_objects(scene, read_unknown(render_scene(scene, 128))) for scene in scenes]
    assert sum(result.all_right for result in results) >= right
    assert {len(scene.objects) for scene in scenes} == {1, 2}


def test_found_objects_lie_where_they_were_drawn() -> None:
    read = read_unknown(render_scene(SCENE, 128))
    result = compare_objects(SCENE, read)
    assert result.all_right
    for each, n in zip(SCENE.objects, result.matches, strict=True):
        assert n is not None
        found = read.objects[n]
        assert max(abs(found.x - each.x), abs(found.y - each.y), abs(found.size - each.size)) <= 12


def test_an_empty_picture_has_no_objects() -> None:
    empty = replace(SCENE, objects=(), background=Background(colour="blue", pattern="checkered"), style="sketch")
    assert read_unknown(render_scene(empty, 128)) == empty


def test_no_more_objects_are_found_than_allowed() -> None:
    assert len(read_unknown(render_scene(SCENE, 128), max_objects=1).objects) == 1


def test_the_one_missing_object_is_found() -> None:
    picture = render_scene(SCENE, 128)
    found = missing_object(picture_of(picture), replace(SCENE, objects=(HEART,)))
    assert found is not None and object_attributes(found) == object_attributes(TRIANGLE)
    assert missing_object(picture_of(picture), SCENE) is None
    with pytest.raises(ValueError, match=r"image: got shape \(31, 31, 3\)"):
        picture_of(np.zeros((31, 31, 3), dtype=np.uint8))


def test_presence_tells_objects_from_empty_places() -> None:
    picture = picture_of(render_scene(replace(SCENE, objects=(TRIANGLE,)), 128))
    assert presence(picture, SCENE) == [False, True]
    assert presence(picture_of(render_scene(SCENE, 128)), SCENE) == [True, True]


def test_strange_pixels_are_those_of_things_not_told() -> None:
    picture = render_scene(SCENE, 128)
    heart_only = replace(SCENE, objects=(HEART,))
    strange = strange_pixels(picture_of(picture), heart_only)
    triangle = object_pixels(SCENE, 1, 128)
    assert (strange & triangle).sum() > 0.6 * triangle.sum()
    assert not strange_pixels(picture_of(picture), SCENE).any()
    # Neither a tone of the whole picture nor a pattern a pixel off is a thing.
    assert not strange_pixels(picture_of(picture) - 20, SCENE).any()
    checkered = replace(SCENE, background=Background(colour="blue", pattern="checkered"))
    moved = np.pad(render_scene(checkered, 128), ((1, 0), (0, 0), (0, 0)), mode="edge")[:128]
    assert not strange_pixels(picture_of(moved), checkered).any()


def test_outlines_win_what_they_cover() -> None:
    votes = (object_coverage(replace(SCENE, objects=(HEART,)), 128)[0] > 127) * np.float32(2) - np.float32(1)
    won, x, y, side = best_outlines(votes, 3)[0]
    assert max(abs(x - 37), abs(y - 38)) <= 2 and abs(side - 40) <= 4
    assert won == pytest.approx((votes > 0).sum(), rel=0.15)
    assert len(best_outlines(votes, 3)) == 3


def test_blurring_matches_the_binomial_weights() -> None:
    values = np.zeros((11, 13, 2), dtype=np.float32)
    values[5, 7, 1] = 256
    line = np.array([1, 4, 6, 4, 1])
    assert (soften(values)[3:8, 5:10, 1] == np.outer(line, line)).all()
    assert soften(values)[..., 0].max() == 0 and (soften(values + 3)[0, 0] == 3).all()


def test_comparison_matches_by_attributes_not_by_order() -> None:
    other = replace(TRIANGLE, colour="blue", x=100)
    result = compare_objects(SCENE, replace(SCENE, objects=(other, HEART), style="cartoon"))
    assert result.matches == (1, 0)
    assert all(result.objects[0].values())
    assert [name for name, right in result.objects[1].items() if not right] == ["colour"]
    assert result.scene == {"style": False, "background.colour": True, "background.pattern": True}
    assert not result.all_right and (result.num_missing, result.num_extra) == (0, 0)


def test_objects_too_few_and_too_many_are_counted() -> None:
    few = compare_objects(SCENE, replace(SCENE, objects=(TRIANGLE,)))
    assert few.matches == (None, 0) and (few.num_missing, few.num_extra) == (1, 0)
    assert not any(few.objects[0].values()) and all(few.objects[1].values()) and not few.all_right
    many = compare_objects(replace(SCENE, objects=(TRIANGLE,)), SCENE)
    assert many.matches == (1,) and (many.num_missing, many.num_extra) == (0, 1) and not many.all_right
