"""Edits of captions by rule: every kind, on captions whose parts are known."""

from __future__ import annotations

import pytest

from vimaedit.errors import RequestError
from vimaedit.synthesis.captions import read_caption
from vimaedit.synthesis.lexicon import CATEGORIES, Lexicon, load_lexicon
from vimaedit.synthesis.pairs import PromptPair, check_pair
from vimaedit.synthesis.rules import propose_pairs, with_article
from vimaedit.types import BlendPhrase
from vimaedit.words.phrases import find_phrase

SCENE = "a sketch of a large red star, a blue circle on the left and a green cross on a checkered pink background"


@pytest.fixture(scope="module")
def scenes() -> Lexicon:
    return load_lexicon("scenes")


@pytest.fixture(scope="module")
def general() -> Lexicon:
    return load_lexicon("general")


def all_pairs(text: str, lexicon: Lexicon, category: str, seeds: int = 40) -> list[PromptPair]:
    made = [propose_pairs(text, lexicon, [category], 1, seed)[0] for seed in range(seeds)]
    return [check_pair(pair) for pair in made if isinstance(pair, PromptPair)]


def test_a_caption_is_read_into_its_parts(scenes: Lexicon) -> None:
    caption = read_caption(SCENE, scenes)
    assert caption.style == "sketch" and caption.opening is not None
    assert caption.cut(caption.opening) == "a sketch of "
    assert [caption.cut(item.span) for item in caption.items] == [
        "a large red star",
        "a blue circle on the left",
        "a green cross",
    ]
    assert [caption.cut(item.noun) for item in caption.items if item.noun] == ["large red star", "blue circle", "green cross"]
    assert [caption.cut(joiner) for joiner in caption.joiners] == [", ", " and "]
    assert caption.background is not None and caption.cut(caption.background) == "on a checkered pink background"
    assert caption.background_noun is not None and caption.cut(caption.background_noun) == "checkered pink background"


def test_a_background_may_come_first_and_name_two_colours(scenes: Lexicon) -> None:
    caption = read_caption("on a yellow and purple gradient background, a green heart", scenes)
    assert (
        caption.background_noun is not None and caption.cut(caption.background_noun) == "yellow and purple gradient background"
    )
    assert [caption.cut(item.span) for item in caption.items] == ["a green heart"]
    fading = read_caption("a red cross against a background fading from white to grey", scenes)
    assert fading.background_noun is not None and fading.cut(fading.background_noun) == "background fading from white to grey"


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_kind_of_edit_changes_its_own_words(scenes: Lexicon, category: str) -> None:
    # A scene takes two objects at most.
    left_out = ", a blue circle on the left and a green cross" if category == "add_object" else ", a blue circle on the left"
    pairs = all_pairs(SCENE.replace(left_out, ""), scenes, category)
    assert len({pair.target_prompt for pair in pairs}) > 1
    for pair in pairs:
        assert pair.category == category and pair.target_prompt != pair.source_prompt
        if category == "change_style":
            assert pair.blend == () and pair.target_prompt.endswith(
                "of a large red star and a green cross on a checkered pink background"
            )
            continue
        (phrase,) = pair.blend
        assert (phrase.source is None) == (category == "add_object") and (phrase.target is None) == (
            category == "delete_object"
        )
        for text, prompt in ((phrase.source, pair.source_prompt), (phrase.target, pair.target_prompt)):
            assert text is None or len(find_phrase(prompt, text)) == 1


def test_the_words_of_each_edit(general: Lexicon) -> None:
    caption = "A photo of a cat and an old brown dog on the beach"

    def first(category: str) -> PromptPair:
        return all_pairs(caption, general, category)[0]

    gone = {pair.target_prompt: pair for pair in all_pairs(caption, general, "delete_object")}
    assert set(gone) == {"A photo of an old brown dog on the beach", "A photo of a cat on the beach"}
    pair = gone["A photo of a cat on the beach"]
    assert pair.blend == (BlendPhrase(source="old brown dog", target=None),) and "the old brown dog" in pair.instruction
    colour = first("change_attribute_color")
    assert colour.blend[0].source == "old brown dog" and colour.target_prompt.startswith("A photo of a cat and an old ")
    added = first("add_object")
    assert added.target_prompt.startswith("A photo of a cat, an old brown dog and ") and added.target_prompt.endswith(
        " on the beach"
    )
    style = first("change_style")
    assert style.target_prompt.endswith(" of a cat and an old brown dog on the beach") and style.target_prompt[0].isupper()
    background = first("change_background")
    assert background.blend[0].source == "beach" and background.target_prompt.startswith(
        "A photo of a cat and an old brown dog "
    )


def test_the_article_follows_the_word(scenes: Lexicon) -> None:
    targets = {
        pair.target_prompt for pair in all_pairs("a red star on a white background", scenes, "change_attribute_color", 80)
    }
    assert "an orange star on a white background" in targets and "a blue star on a white background" in targets
    assert [with_article(word) for word in ("apple", "unicorn", "hour", "box")] == ["an apple", "a unicorn", "an hour", "a box"]


def test_the_last_of_three_things_goes_with_its_comma(scenes: Lexicon) -> None:
    targets = {pair.target_prompt for pair in all_pairs(SCENE, scenes, "delete_object", 60)}
    background = "on a checkered pink background"
    assert targets == {
        f"a sketch of a blue circle on the left and a green cross {background}",
        f"a sketch of a large red star and a green cross {background}",
        f"a sketch of a large red star and a blue circle on the left {background}",
    }


def test_a_new_colour_is_not_that_of_the_background(scenes: Lexicon) -> None:
    for pair in all_pairs("a red star on a white background", scenes, "change_attribute_color", 80):
        assert "white star" not in pair.target_prompt
    for pair in all_pairs("a red star on a white background", scenes, "change_background", 80):
        assert " red " not in pair.target_prompt.removeprefix("a red star")


def test_words_of_two_places_are_not_taken(scenes: Lexicon) -> None:
    same = "a red star and a red star on a white background"
    for category in ("change_object", "delete_object", "change_attribute_color"):
        (error,) = propose_pairs(same, scenes, [category], 1, 3)
        assert isinstance(error, RequestError) and error.code == "no_edit_applies"


def test_blocked_words_keep_an_edit_away(scenes: Lexicon) -> None:
    sad = "a sad yellow heart on a blue background"
    assert not all_pairs(sad, scenes, "change_object") and not all_pairs(sad, scenes, "change_attribute_material")
    assert all_pairs(sad, scenes, "change_attribute_color")


def test_several_edits_of_a_caption_differ_and_the_missing_are_named(scenes: Lexicon) -> None:
    made = propose_pairs(SCENE, scenes, [], 5, 11)
    assert len({pair.target_prompt for pair in made if isinstance(pair, PromptPair)}) == 5
    assert propose_pairs(SCENE, scenes, [], 5, 11) == made
    assert propose_pairs(SCENE, scenes, [], 5, 12) != made
    first, second = propose_pairs("a red star", scenes, ["delete_object"], 2, 0)
    assert isinstance(first, RequestError) and first is second
    assert str(first) == (
        "source_prompt: got 'a red star', of which the word lists allow 0 edits; allowed: captions that name things, colours or a "
        "background of the word lists, for delete_object"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction": " "}, "instruction: got ' '; allowed: a text with at least one word"),
        ({"target_prompt": "."}, "target_prompt: got '.'; allowed: a text with at least one word"),
        ({"target_prompt": "a " * 600}, "target_prompt: got 1200 characters; allowed: up to 1000"),
        ({"target_prompt": "A  cat!"}, "target_prompt: got 'A  cat!'; allowed: a text that differs from source_prompt"),
        (
            {"blend": (BlendPhrase(source="cow", target=None),)},
            "blend_words: got 'cow', which is not in source_prompt 'a cat'; allowed: whole words of that prompt, or null",
        ),
        (
            {"blend": (BlendPhrase(source=None, target="cow"),)},
            "blend_words: got 'cow', which is not in target_prompt 'a dog'; allowed: whole words of that prompt, or null",
        ),
    ],
)
def test_pairs_that_say_nothing_are_refused(changes: dict[str, object], message: str) -> None:
    whole = {"source_prompt": "a cat", "target_prompt": "a dog", "blend": (), "instruction": "make it a dog", "category": None}
    assert check_pair(PromptPair(**whole)) == PromptPair(**whole)  # type: ignore[arg-type]
    with pytest.raises(RequestError) as refused:
        check_pair(PromptPair(**{**whole, **changes}))  # type: ignore[arg-type]
    assert str(refused.value) == message
