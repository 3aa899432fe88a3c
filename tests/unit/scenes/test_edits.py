"""Edits of scenes: what changes, what stays, and that the answer is exact."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tests.scene_splits import may_train_on
from vimaedit.scenes.benchmark import MAX_COUNT, MAX_SEED, benchmark_seed, spread_categories
from vimaedit.scenes.captions import place_of
from vimaedit.scenes.edits import ADDED_SIZE, CATEGORIES, SIDES, Edit, edit_mask, make_edit
from vimaedit.scenes.palette import stands_out
from vimaedit.scenes.render import object_coverage, render_scene
from vimaedit.scenes.scenes import SPLIT_SEEDS, split_of_pair
from vimaedit.words.changes import find_changes
from vimaedit.words.phrases import find_phrase

COUNT = 67
SIZE = 73
LOCAL = CATEGORIES[1:8]
CHANGED = {  # the one field of the object that a category changes
    "change_object": "shape",
    "change_attribute_content": "face",
    "change_attribute_pose": "angle",
    "change_attribute_color": "colour",
    "change_attribute_material": "material",
}


@pytest.fixture(scope="module", params=CATEGORIES)
def category(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def edits(category: str) -> list[Edit]:
    return [make_edit(SPLIT_SEEDS["test"].start + n, category) for n in range(COUNT)]


def test_outside_the_mask_nothing_changes_and_inside_something_does(category: str, edits: list[Edit]) -> None:
    for edit in edits:
        source, target = (render_scene(scene, SIZE) for scene in (edit.source, edit.target))
        differs = (source != target).any(axis=-1)
        mask = edit_mask(edit, SIZE)
        assert not (differs & ~mask).any()
        # A face is a small part of its object, and a new style may be one of outlines only.
        assert differs.sum() >= 0.01 * mask.sum()
        if category in ("add_object", "delete_object"):
            assert differs.sum() >= 0.9 * mask.sum()
        if category in LOCAL:
            assert mask.mean() < 0.45


def test_the_mask_is_what_is_seen_of_the_edited_thing(category: str, edits: list[Edit]) -> None:
    for edit in edits:
        mask = edit_mask(edit, SIZE)
        if edit.source.style != edit.target.style:
            assert mask.all()
            continue
        expected = np.zeros_like(mask)
        for scene, index in ((edit.source, edit.source_index), (edit.target, edit.target_index)):
            coverage = object_coverage(scene, SIZE).astype(float) / 255
            if index is not None:
                expected |= coverage[index] > 0
            elif edit.source_index is None and edit.target_index is None:
                expected |= (1 - coverage).prod(axis=0) > 0
        assert (mask == expected).all()


def test_only_what_is_named_changes(category: str, edits: list[Edit]) -> None:
    for edit in edits:
        before, after = edit.source, edit.target
        if category in CHANGED:
            assert edit.source_index == edit.target_index and edit.source_index is not None
            old, new = before.objects[edit.source_index], after.objects[edit.source_index]
            field = CHANGED[category]
            assert getattr(old, field) != getattr(new, field)
            assert replace(new, **{field: getattr(old, field)}) == old
            others = [n for n in range(len(before.objects)) if n != edit.source_index]
            assert [before.objects[n] for n in others] == [after.objects[n] for n in others]
            assert (before.background, before.style) == (after.background, after.style)
        elif category == "add_object":
            assert after.objects[:-1] == before.objects and edit.target_index == len(before.objects) == 1
            new = after.objects[-1]
            place = place_of(new)
            assert place and place in edit.target_prompt and edit.instruction.endswith(place)
            assert (new.x, new.y) == SIDES[place] and new.size == ADDED_SIZE
        elif category == "delete_object":
            assert edit.source_index is not None
            kept = before.objects[: edit.source_index] + before.objects[edit.source_index + 1 :]
            assert after == replace(before, objects=kept)
        elif category == "change_background":
            assert after == replace(before, background=after.background) and after.background != before.background
        elif category == "change_style":
            assert after == replace(before, style=after.style) and after.style != before.style
        assert before != after
        assert all(stands_out(each.colour, after.background) for each in after.objects)
        pairs = [(each.colour, each.shape) for each in after.objects]
        assert len(set(pairs)) == len(pairs)
        assert (object_coverage(after, SIZE) > 0).sum(axis=0).max() <= 1
        assert {split_of_pair(*pair) for pair in pairs} <= {"train", "test"}


def test_captions_differ_by_the_change_alone(category: str, edits: list[Edit]) -> None:
    for edit in edits:
        assert edit.source_prompt != edit.target_prompt
        words = [Counter(prompt.replace(",", "").split()) for prompt in (edit.source_prompt, edit.target_prompt)]
        if edit.instruction.startswith("add "):
            assert words[0] < words[1]
        elif edit.instruction.startswith("remove "):
            assert words[1] < words[0]
        else:
            difference = find_changes(edit.source_prompt, edit.target_prompt)
            # One change; two where a pattern told behind its noun becomes a material told before it.
            assert 1 <= len(difference.content) + len(difference.style) <= 2
            is_style = edit.source.style != edit.target.style
            assert bool(difference.style) == (not difference.content) == is_style == (edit.blend == ())


def test_blend_phrases_stand_once_in_their_captions(category: str, edits: list[Edit]) -> None:
    for edit in edits:
        for phrase in edit.blend:
            assert phrase.source is None or len(find_phrase(edit.source_prompt, phrase.source)) == 1
            assert phrase.target is None or len(find_phrase(edit.target_prompt, phrase.target)) == 1
            assert (phrase.source is None) == (category == "add_object" or edit.instruction.startswith("add "))
            assert (phrase.target is None) == (category == "delete_object" or edit.instruction.startswith("remove "))


def test_what_a_caption_leaves_open_is_said(category: str, edits: list[Edit]) -> None:
    for edit in edits:
        verb = edit.instruction.split()[0]
        new = edit.target.objects[edit.target_index or 0]
        assert edit.determined == (verb not in ("tilt", "add") or not new.pose.startswith("tilted"))
    if category in ("change_attribute_pose", "add_object"):
        assert {edit.determined for edit in edits} == {True, False}


def test_random_edits_are_of_every_kind() -> None:
    edits = [make_edit(SPLIT_SEEDS["validation"].start + n, "random") for n in range(97)]
    assert {edit.category for edit in edits} == {"random"}
    verbs = {edit.instruction.split()[0] for edit in edits}
    assert verbs >= {"change", "add", "remove", "make", "turn", "tilt"}


def test_an_edit_follows_from_its_seed_alone(category: str) -> None:
    assert make_edit(11, category) == make_edit(11, category)
    assert make_edit(11, category) != make_edit(13, category)
    assert may_train_on(make_edit(11, category).source) and may_train_on(make_edit(11, category).target)


def test_unknown_categories_are_refused() -> None:
    with pytest.raises(ValueError, match="category: got 'change'; allowed: random, change_object, add_object"):
        make_edit(0, "change")


def test_seven_hundred_records_have_the_proportions_of_the_benchmark() -> None:
    names = spread_categories(700, CATEGORIES)
    expected = dict(zip(CATEGORIES, (140, 80, 80, 80, 40, 40, 40, 40, 80, 80), strict=True))
    assert Counter(names) == expected
    # Any beginning is a fair sample.
    for length in (35, 67, 211):
        counts = Counter(names[:length])
        assert all(abs(counts[name] - length * expected[name] / 700) < 2 for name in CATEGORIES)
    assert Counter(spread_categories(7, ["change_style", "add_object"])) == {"add_object": 4, "change_style": 3}


def test_records_of_different_benchmarks_have_different_seeds() -> None:
    assert benchmark_seed("test", MAX_SEED, MAX_COUNT - 1) in SPLIT_SEEDS["test"]
    assert benchmark_seed("test", 0, MAX_COUNT - 1) + 1 == benchmark_seed("test", 1, 0)
