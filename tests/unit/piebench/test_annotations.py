"""PIE-Bench's annotations: runs of pixels, frame, brackets, blend words, categories."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.piebench_tree import FOLDERS, draw, entry_of, row_of, runs
from vimaedit.errors import RequestError
from vimaedit.piebench.annotations import (
    CATEGORIES,
    MASK_CLIPPED,
    MASK_EMPTY,
    MORE_WORDS,
    ONE_WORD,
    SIDE,
    decode_runs,
    read_entry,
    read_row,
    strip_brackets,
    with_frame,
)
from vimaedit.scenes import edits
from vimaedit.types import BlendPhrase

ENTRY = {
    "image_path": "1_change_object_80/1.jpg",
    "original_prompt": "a [cat] on a Red-Brown sofa",
    "editing_prompt": "a [dog] on a Red-Brown sofa",
    "editing_instruction": "make it a dog",
    "editing_type_id": "1",
    "blended_word": "cat dog",
    "mask": [SIDE + 7, 3],
}


def entry(**changes: Any) -> dict[str, Any]:
    return {**ENTRY, **changes}


def pair(source: str | None, target: str | None) -> tuple[BlendPhrase, ...]:
    return (BlendPhrase(source=source, target=target),)


def test_runs_are_row_major_and_come_back() -> None:
    mask, clipped = decode_runs([5, 3, 13, 1], side=7)
    wanted = np.zeros((7, 7), dtype=bool)
    wanted[0, 5:] = wanted[1, 0] = wanted[1, 6] = True
    assert (mask == wanted).all() and not clipped
    drawn = np.random.default_rng(3).random((13, 13)) < 0.4
    assert (decode_runs(runs(drawn), side=13)[0] == drawn).all()


def test_runs_are_clipped_at_the_last_pixel() -> None:
    mask, clipped = decode_runs([47, 100], side=7)
    assert clipped and mask.sum() == 2 and mask[6, 5:].all()
    mask, clipped = decode_runs([49, 1, 10**30, 10**30], side=7)
    assert clipped and not mask.any()
    mask, clipped = decode_runs([47, 2], side=7)
    assert not clipped and mask.sum() == 2


def test_the_frame_is_one_pixel_wide() -> None:
    inner = np.zeros((7, 11), dtype=bool)
    framed = with_frame(inner)
    assert framed.sum() == 2 * 11 + 2 * 5 and not framed[1:-1, 1:-1].any() and not inner.any()


def test_an_entry_is_read() -> None:
    annotation = read_entry(ENTRY)
    assert annotation.source_prompt == "a cat on a Red-Brown sofa" and annotation.target_prompt == "a dog on a Red-Brown sofa"
    assert annotation.blend == pair("cat", "dog") and annotation.category == "1_change_object"
    assert annotation.instruction == "make it a dog" and annotation.problems == annotation.notes == ()
    mask = annotation.mask
    assert mask is not None and mask.shape == (SIDE, SIDE)
    assert mask[1, 7:10].all() and mask[1:-1, 1:-1].sum() == 3 and mask[0].all() and mask[:, -1].all()


@pytest.mark.parametrize(
    ("words", "blend", "notes"),
    [
        ("", (), ()),
        ("   ", (), ()),
        (None, (), ()),
        ("cat dog", pair("cat", "dog"), ()),
        (" cat  dog ", pair("cat", "dog"), ()),
        ("[cat] [dog]", pair("cat", "dog"), ()),
        ("Cat DOG", pair("Cat", "DOG"), ()),
        ("red-brown t-shirt", pair("red-brown", "t-shirt"), ()),
        ("cat big dog", pair("cat", "big"), (MORE_WORDS,)),
        ("CAT", pair("CAT", None), (ONE_WORD,)),
        ("dog", pair(None, "dog"), (ONE_WORD,)),
        ("red-brown", pair("red-brown", "red-brown"), (ONE_WORD,)),
        ("brown", pair("brown", "brown"), (ONE_WORD,)),
        ("horse", pair("horse", "horse"), (ONE_WORD,)),
    ],
)
def test_blend_words(words: str | None, blend: tuple[BlendPhrase, ...], notes: tuple[str, ...]) -> None:
    annotation = read_entry(entry(blended_word=words))
    assert (annotation.blend, annotation.notes, annotation.problems) == (blend, notes, ())


@pytest.mark.parametrize(
    ("words", "blend", "notes"),
    [
        ("[]", (), ()),
        ("", (), ()),
        (None, (), ()),
        ('["cat,dog", "old sofa , new bench"]', (*pair("cat", "dog"), *pair("old sofa", "new bench")), ()),
        (["cat,dog"], pair("cat", "dog"), ()),
        ('["cat,", ",dog", ","]', (*pair("cat", None), *pair(None, "dog")), ()),
        ('["cat"]', pair("cat", None), (ONE_WORD,)),
        ('["cat,big,dog"]', pair("cat", "big"), (MORE_WORDS,)),
    ],
)
def test_lists_of_blend_words(words: Any, blend: tuple[BlendPhrase, ...], notes: tuple[str, ...]) -> None:
    row = {"source_prompt": "a [cat]", "target_prompt": "a [dog]", "blended_words": words, "mask": ""}
    annotation = read_row(row, "8_change_background_80/V1-00000-of-00001.parquet")
    assert (annotation.blend, annotation.problems) == (blend, ())
    assert annotation.notes == (*notes, MASK_EMPTY)
    assert annotation.category == "8_change_background" and annotation.instruction is None


def test_masks_are_clipped_or_empty_with_a_note() -> None:
    last = SIDE * SIDE - 1
    assert read_entry(entry(mask=[last, 5])).notes == (MASK_CLIPPED,)
    empty = read_entry(entry(mask=[]))
    assert empty.notes == (MASK_EMPTY,) and empty.mask is not None and empty.mask.sum() == 4 * SIDE - 4
    whole = read_entry(entry(mask=[0, SIDE * SIDE]))
    assert whole.notes == () and whole.mask is not None and whole.mask.all()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"mask": [1]}, "mask: got 1 numbers; allowed: pairs of start and length"),
        ({"mask": [5, -2]}, "mask: got the run (5, -2); allowed: numbers from 0 on"),
        ({"mask": [5, 1.5]}, "mask: got 1.5 among the numbers; allowed: integers"),
        ({"mask": [True, 2]}, "mask: got True among the numbers; allowed: integers"),
        ({"mask": "5 x"}, "mask: got 'x' among the numbers; allowed: integers"),
        ({"mask": None}, "mask: got nothing; allowed: start and length of every run of pixels"),
        ({"editing_type_id": "10"}, 'editing_type_id: got \'10\'; allowed: "0" to "9"'),
        ({"editing_type_id": None}, 'editing_type_id: got nothing; allowed: "0" to "9"'),
        ({"editing_type_id": True}, 'editing_type_id: got True; allowed: "0" to "9"'),
        ({"editing_instruction": 7}, "editing_instruction: got 7; allowed: text"),
        ({"blended_word": ["cat"]}, "blended_word: got ['cat']; allowed: text"),
    ],
)
def test_what_only_scoring_needs_is_left_away_and_said(changes: dict[str, Any], problem: str) -> None:
    annotation = read_entry(entry(**changes))
    assert [str(each) for each in annotation.problems] == [problem]
    assert annotation.source_prompt == "a cat on a Red-Brown sofa"
    assert (annotation.mask is None) == ("mask" in changes)
    assert (annotation.category is None) == ("editing_type_id" in changes)


def test_a_category_may_be_a_number() -> None:
    assert read_entry(entry(editing_type_id=9)).category == "9_change_style"


@pytest.mark.parametrize("name", ["original_prompt", "editing_prompt"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "got nothing; allowed: text"),
        (7, "got 7; allowed: text"),
        ("[ ]", "got '[ ]'; allowed: text that is not empty"),
        ("a \ud800", "got 'a \\ud800'; allowed: UTF-8 text"),
    ],
)
def test_without_a_prompt_there_is_nothing_to_edit(name: str, value: Any, problem: str) -> None:
    with pytest.raises(RequestError) as raised:
        read_entry(entry(**{name: value}))
    assert str(raised.value) == f"{name}: {problem}"


@pytest.mark.parametrize(
    ("changes", "folder", "problem"),
    [
        ({"blended_words": "cat,dog"}, FOLDERS[0], "blended_words: got 'cat,dog'; allowed: a JSON list of texts"),
        ({"blended_words": "{}"}, FOLDERS[0], "blended_words: got '{}'; allowed: a JSON list of texts"),
        ({"blended_words": "[" * 5000}, FOLDERS[0], f"blended_words: got '{'[' * 79}...; allowed: a JSON list of texts"),
        ({"mask": RequestError("unreadable_value", field="mask", got="a", allowed="b")}, FOLDERS[0], "mask: got a; allowed: b"),
        ({"blended_words": "[7]"}, FOLDERS[0], "blended_words: got 7; allowed: text"),
        ({}, "train", "folder: got 'train'; allowed: folders like 0_random_140"),
        ({}, "10_random_140", "folder: got '10_random_140'; allowed: folders like 0_random_140"),
    ],
)
def test_what_is_wrong_with_a_row(changes: dict[str, Any], folder: str, problem: str) -> None:
    row = {"source_prompt": "a cat", "target_prompt": "a dog", "blended_words": "[]", "mask": "7 3", **changes}
    assert [str(each) for each in read_row(row, folder).problems] == [problem]


def test_only_brackets_are_stripped() -> None:
    assert strip_brackets("A [cat], [ big ] (dog)  {x}") == "A cat,  big  (dog)  {x}"


def test_the_made_up_benchmark_comes_back() -> None:
    for drawn in draw(20):
        for annotation in (read_entry(entry_of(drawn)), read_row(row_of(drawn), FOLDERS[drawn.category])):
            assert (annotation.source_prompt, annotation.target_prompt) == (drawn.edit.source_prompt, drawn.edit.target_prompt)
            assert annotation.category == CATEGORIES[drawn.category] and not annotation.problems and not annotation.notes
            assert annotation.blend == (pair(*drawn.words) if drawn.words else ())
            assert annotation.mask is not None and (annotation.mask == with_frame(drawn.mask)).all()


def test_categories_are_those_of_the_scene_benchmark() -> None:
    assert CATEGORIES == tuple(f"{number}_{name}" for number, name in enumerate(edits.CATEGORIES))
