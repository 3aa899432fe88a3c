"""The judge accepts exact answers, also blurred and noisy ones, and refuses unedited, half-edited and spoilt pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vimaedit.scenes.benchmark import benchmark_seed
from vimaedit.scenes.edits import CATEGORIES, Edit, make_edit
from vimaedit.scenes.reading.judge import Verdict, judge_edit
from vimaedit.scenes.reading.reader import _window
from vimaedit.scenes.render import object_pixels, render_scene
from vimaedit.scenes.scenes import Background, Scene, SceneObject
from vimaedit.types import UInt8Array

HEART = SceneObject(shape="heart", colour="red", material="plain", face=None, x=290, y=300, size=310, angle=0)
STAR = replace(HEART, shape="star", colour="blue", x=700, y=690)
SOURCE = Scene(objects=(HEART, STAR), background=Background(colour="yellow", pattern="plain"), style="picture")
PLACES = "source_index, target_index: got {}, {} for 2 objects before and {} after the edit; allowed: the same index twice, "


def edits(category: str, count: int) -> list[Edit]:
    return [make_edit(benchmark_seed("validation", 2, n), category) for n in range(count)]


def judged(image: UInt8Array, edit: Edit) -> Verdict:
    return judge_edit(image, edit.source, edit.target, edit.source_index, edit.target_index)


def worsened(image: UInt8Array, seed: int) -> UInt8Array:
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.8)), dtype=np.float64)
    noisy = blurred + np.random.default_rng(seed).normal(0, 8, image.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("category", CATEGORIES[1:])
@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_answers_pass_and_unedited_pictures_fail(category: str, count: int) -> None:
    for edit in edits(category, count):
        verdict = judged(render_scene(edit.target, 128), edit)
        assert verdict.success and verdict.changed and not verdict.wrong
        unedited = judged(render_scene(edit.source, 128), edit)
        assert not unedited.edited_right and unedited.others_unchanged
        assert set(unedited.wrong) == set(verdict.changed)


def test_blurred_and_noisy_answers_pass() -> None:
    verdicts = [judged(worsened(render_scene(edit.target, 128), 5), edit) for name in CATEGORIES for edit in edits(name, 1)]
    assert sum(verdict.success for verdict in verdicts) >= 9


def test_an_object_of_another_place_and_size_is_added_rightly() -> None:
    source, new = replace(SOURCE, objects=(HEART,)), replace(HEART, shape="cross", colour="green", x=800, y=550)
    target = replace(source, objects=(HEART, new))
    assert judge_edit(render_scene(target, 128), source, target, None, 1).wanted["objects.1.place"] == "on the right"

    def shown(*added: SceneObject) -> Verdict:
        return judge_edit(render_scene(replace(source, objects=(HEART, *added)), 128), source, target, None, 1)

    assert shown(replace(new, x=750, y=380, size=400)).success
    colour = shown(replace(new, colour="purple"))
    assert colour.wrong == ("objects.1.colour",) and colour.others_unchanged and not colour.success
    place = shown(replace(new, x=540, y=780))
    assert place.wrong == ("objects.1.place",) and place.others_unchanged and not place.success
    assert not shown(new, replace(HEART, shape="circle", colour="blue", x=250, y=760)).others_unchanged
    nothing = shown()
    assert not nothing.edited_right and "objects.1.place" in nothing.wrong and nothing.others_unchanged


def test_a_removed_object_must_be_gone_and_no_other() -> None:
    target = replace(SOURCE, objects=(STAR,))
    changed = replace(SOURCE, objects=(replace(HEART, shape="circle", colour="green", size=230), STAR))
    verdict = judge_edit(render_scene(changed, 128), SOURCE, target, 0, None)
    assert verdict.changed == ("objects.0.present",) and verdict.wrong == ("objects.0.present",)
    both_gone = judge_edit(render_scene(replace(SOURCE, objects=()), 128), SOURCE, target, 0, None)
    assert both_gone.edited_right and not both_gone.others_unchanged
    assert both_gone.read["objects.1.present"] == "no"


@pytest.mark.parametrize(("rows", "gone"), [(2, True), (4, False)])
def test_of_a_removed_object_specks_may_stay_and_no_strokes(rows: int, gone: bool) -> None:
    """Its upper rows, 4 and 10 % of its pixels."""
    target = replace(SOURCE, objects=(STAR,))
    picture, source = render_scene(target, 128), render_scene(SOURCE, 128)
    old = object_pixels(SOURCE, 0, 128)
    old[old.any(axis=1).argmax() + rows :] = False
    picture[old] = source[old]
    verdict = judge_edit(picture, SOURCE, target, 0, None)
    assert verdict.success == gone and verdict.others_unchanged


def test_damage_elsewhere_is_noticed() -> None:
    target = replace(SOURCE, objects=(replace(HEART, colour="green"), STAR))
    picture = render_scene(target, 128)
    picture[8:24, 100:116] = (60, 60, 160)
    verdict = judge_edit(picture, SOURCE, target, 0, 0)
    assert verdict.edited_right and not verdict.others_unchanged and verdict.wrong == ("strange",)
    neighbour = replace(target, objects=(target.objects[0], replace(STAR, material="spotted")))
    verdict = judge_edit(render_scene(neighbour, 128), SOURCE, target, 0, 0)
    assert verdict.edited_right and verdict.wrong == ("objects.1.material",)


@pytest.mark.parametrize(
    ("objects", "source_index", "target_index"),
    [((STAR, HEART), 2, 2), ((STAR, HEART), 0, 1), ((STAR,), 0, 0), ((HEART,), None, None), ((HEART, STAR, STAR), None, 0)],
)
def test_places_that_do_not_fit_are_refused(
    objects: tuple[SceneObject, ...], source_index: int | None, target_index: int | None
) -> None:
    with pytest.raises(ValueError, match=PLACES.format(source_index, target_index, len(objects))):
        judge_edit(render_scene(SOURCE, 64), SOURCE, replace(SOURCE, objects=objects), source_index, target_index)


def test_equal_scenes_and_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="source, target: got the same scene twice; allowed: scenes that differ"):
        judge_edit(render_scene(SOURCE, 64), SOURCE, SOURCE, 0, 0)
    with pytest.raises(ValueError, match=r"image: got shape \(64, 66, 3\)"):
        judge_edit(np.zeros((64, 66, 3), dtype=np.uint8), SOURCE, replace(SOURCE, style="sketch"), None, None)


@pytest.mark.parametrize("seed", range(6))
def test_any_picture_gets_a_verdict(seed: int) -> None:
    """What an editor returns may be anything: noise, one colour, blobs that run over the rim."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (1 + seed, 1 + seed, 3), dtype=np.uint8)
    blobs = np.array(Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC))
    noise = random.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    edit = make_edit(benchmark_seed("validation", 9, seed), CATEGORIES[2 + seed % 2])  # add, delete
    for picture in (blobs, noise):
        assert not judge_edit(picture, edit.source, edit.target, edit.source_index, edit.target_index).success


@pytest.mark.parametrize("x, y", [(20, 11), (0, 0), (-9, 4), (40, 60), (-30, -30), (36, 31)])
def test_a_window_may_lie_anywhere(x: int, y: int) -> None:
    """An object sought in a poor picture may have its centre outside of it."""
    values = np.random.default_rng(0).random((31, 37, 3), dtype=np.float32)
    whole = np.zeros((200, 200, 3), np.float32)
    whole[80:111, 80:117] = values
    assert (_window(values, x, y, 7) == whole[80 + y - 7 : 80 + y + 7, 80 + x - 7 : 80 + x + 7]).all()
