"""Words to tokens: matching, the rules of truncation, the text edit. A small tokenizer of its own, and the recorded vectors."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from vimaedit.attention.routing import open_to_text
from vimaedit.config import EditConfig
from vimaedit.errors import RequestError
from vimaedit.types import BlendPhrase, EditRequest
from vimaedit.words.alignment import align_tokens
from vimaedit.words.changes import find_changes
from vimaedit.words.phrases import find_phrase, parse_blend, spaced_words, split_words
from vimaedit.words.tokens import EditTokens, Tokenizer, pad_ids, settle_tokens, token_spans, tokens_of_spans

LENGTH = 19


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of a few words, each one token; all others fall into single letters."""
    letters = list(bytes_to_unicode().values())
    merges: list[tuple[str, str]] = []
    for word in "a cat dog ti ger photo painting of on the grass red hat and with".split():
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = ["".join(pieces[:2]), *pieces[2:]]
    merges = list(dict.fromkeys([*merges, ("t", "i")]))
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: n for n, token in enumerate(dict.fromkeys(tokens))}, merges=merges, model_max_length=LENGTH
    )


@pytest.fixture(scope="module")
def recorded_tokenizer(oracle: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(oracle / "models" / "sd" / "tokenizer")


def settle(
    tokenizer: Tokenizer,
    source: str,
    target: str,
    *blend: tuple[str | None, str | None],
    reweight: tuple[tuple[str, float], ...] = (),
    word_windows: tuple[tuple[str, float], ...] = (),
    **settings: Any,
) -> EditTokens:
    request = EditRequest(
        id="r",
        image=np.zeros((17, 19, 3), np.uint8),
        source_prompt=source,
        target_prompt=target,
        blend=tuple(BlendPhrase(source=old, target=new) for old, new in blend),
        reweight=reweight,
        word_windows=word_windows,
    )
    return settle_tokens(request, EditConfig(**settings), {"text_encoder": tokenizer})


def rejected(code: str, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(RequestError) as error:
        settle(*arguments, **settings)
    assert error.value.code == code
    return str(error.value)


def tokens_of(tokenizer: CLIPTokenizer, text: str, phrase: str) -> list[int]:
    return tokens_of_spans(token_spans(text, tokenizer).offsets, find_phrase(text, phrase))


def masked(words: EditTokens) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in words.word_mask]


@pytest.mark.parametrize(
    "text",
    [
        "a cat on the grass",
        "A  Caf\u00e9 CAT,\n on\tthe \u201cgrass\u201d",
        "cafe\u0301 cat",
        "\u72ac cat \U0001f642 hat",
        "\u0130 cat",
    ],
)
def test_offsets_refer_to_the_text_as_typed(tokenizer: CLIPTokenizer, text: str) -> None:
    spans = token_spans(text, tokenizer)
    for n, token in enumerate(tokenizer.convert_ids_to_tokens(spans.ids)[1:-1], start=1):
        start, end = spans.offsets[n]
        letters = token.removesuffix("</w>")
        if letters.isascii():
            assert letters in text[start:end].lower()
        else:
            assert end - start == 1  # one byte of a character
    assert spans.offsets[0].tolist() == spans.offsets[-1].tolist() == [0, 0]


@pytest.mark.parametrize("text", ["", "a cat", "a cat on the grass", "red hat " * 13])
def test_ids_are_padded_and_truncated_as_the_tokenizer_does(tokenizer: CLIPTokenizer, text: str) -> None:
    expected = tokenizer(text, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np").input_ids[0]
    ids = pad_ids(token_spans(text, tokenizer).ids, tokenizer)
    np.testing.assert_array_equal(ids, expected)
    assert ids.dtype == np.int64 and ids.shape == (LENGTH,)


def test_word_indices_equal_the_recorded_ones(oracle: Path, recorded_tokenizer: CLIPTokenizer) -> None:
    """Where the reference counts right: words between single spaces, ASCII, in their own case."""
    vectors = json.loads((oracle / "cases" / "tokens.json").read_text())["word_indices"]
    mended = {
        ("a photo of a  cat sitting", "cat"),
        ("a photo of a cat, sitting", "cat"),
        ("a man's hat", "man"),
        ("a Cat cat", "cat"),
        ("a Cat cat", "Cat"),
        ("a caf\u00e9 cat", "cat"),
        (" a cat", "cat"),
        ("a na\u00efve cat", "cat"),
        ("a \u201ccat\u201d dog", "dog"),
        ("a #cat dog", "dog"),
    }
    checked = 0
    for vector in vectors:
        text, word = vector["text"], vector["word"]
        assert token_spans(text, recorded_tokenizer).ids == vector["ids"]
        if isinstance(word, int):
            continue  # the reference also takes the number of a word
        found = tokens_of(recorded_tokenizer, text, word)
        assert (found == vector["indices"]) != ((text, word) in mended), (text, word)
        checked += 1
    assert checked == 27


@pytest.mark.parametrize(
    ("text", "phrase", "tokens"),
    [
        pytest.param("a cat, on the grass", "cat", [2], id="comma_word_found"),
        pytest.param("a  cat", "cat", [2], id="double_space"),
        pytest.param(" a cat", "cat", [2], id="leading_space"),
        pytest.param("a Cat cat", "CAT", [2, 3], id="case_does_not_matter"),
        pytest.param("a caf\u00e9 cat", "cat", [6], id="accent_does_not_shift"),
        pytest.param("a caf\u00e9 cat", "cafe\u0301", [2, 3, 4, 5], id="accent_in_either_form"),
        pytest.param("a cafe\u0301 cat", "Caf\u00c9", [2, 3, 4, 5], id="accent_in_the_other_form"),
        pytest.param("a \u201ccat\u201d dog", "dog", [9], id="curly_quotes"),
        pytest.param("a red hat on a cat", "red hat", [2, 3], id="phrase_found"),
        pytest.param("a red  Hat on a cat", "red hat", [2, 3], id="phrase_with_spaces"),
        pytest.param("a man's hat", "man", [2, 3, 4], id="part_before_an_apostrophe"),
    ],
)
def test_mended_matching(tokenizer: CLIPTokenizer, text: str, phrase: str, tokens: list[int]) -> None:
    assert tokens_of(tokenizer, text, phrase) == tokens


@pytest.mark.parametrize(
    ("text", "phrase", "found"),
    [
        ("a cat and a cat", "cat", ["cat", "cat"]),
        ("a cat, a cat", "cat,", ["cat,"]),  # typed punctuation belongs to the phrase where it stands so
        ("a cat on grass", "cat,", ["cat"]),  # else the bare phrase
        ("a \u201ccat\u201d", "(cat)", ["cat"]),
        ("a cat . a dog", ".", ["."]),
        ("concatenate a cat_2", "cat", []),  # whole words only
        ("a caf\u00e9", "cafe", []),
        ("a cafe\u0301", "cafe", []),
        ("cat", " cat\n", ["cat"]),
        ("Stra\u00dfe", "STRASSE", ["Stra\u00dfe"]),
        ("a cat", "!?", []),
        ("a black-and-white cat", "white", ["white"]),
        ("a man\u2019s hat", "man's hat", ["man\u2019s hat"]),
        ('a man\'s "hat"', "man\u2019s \u201chat\u201d", ['man\'s "hat"']),
        ("a red\u2011hot cat", "red-hot", ["red\u2011hot"]),
        ("a so\u00adfa", "sofa", ["so\u00adfa"]),
        ("\u4e00\u53ea\u732b\u5728\u6c99\u53d1\u4e0a", "\u732b", ["\u732b"]),
        ("\u4e00\u53ea\u732b\u5728\u6c99\u53d1\u4e0a", "\u6c99\u53d1", ["\u6c99\u53d1"]),
        ("\u0e41\u0e21\u0e27\u0e1a\u0e19\u0e42\u0e0b\u0e1f\u0e32", "\u0e41\u0e21\u0e27", ["\u0e41\u0e21\u0e27"]),
        ("\u0e17\u0e35\u0e48\u0e42\u0e0b\u0e1f\u0e32", "\u0e42\u0e0b\u0e1f\u0e32", ["\u0e42\u0e0b\u0e1f\u0e32"]),
        ("\u0e17\u0e35\u0e48\u0e42\u0e0b", "\u0e17", []),  # not without its marks
        ("\u304c", "\u304b", []),
        ("\u090f\u0915 \u092c\u093f\u0932\u094d\u0932\u0940", "\u092c\u093f\u0932", []),
        (
            "\u090f\u0915 \u092c\u093f\u0932\u094d\u0932\u0940",
            "\u092c\u093f\u0932\u094d\u0932\u0940,",
            ["\u092c\u093f\u0932\u094d\u0932\u0940"],
        ),
        ("(red:1.5) 1", "1", ["1"]),
        ("(red:1.5)", "1.5", ["1.5"]),
    ],
)
def test_occurrences_of_a_phrase(text: str, phrase: str, found: list[str]) -> None:
    assert [text[start:end] for start, end in find_phrase(text, phrase)] == found


def test_given_phrases_mark_their_tokens_on_both_sides(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, "a CAT on the cat", "a tiger, on the grass", ("cat", "tiger"), ("the cat", None), (None, "Grass"))
    assert masked(words) == [[2, 4, 5], [2, 3, 7]]
    assert words.word_mask.dtype == np.float32 and words.word_mask.shape == (2, LENGTH)
    assert words.blend_used == (
        BlendPhrase(source="CAT", target="tiger"),
        BlendPhrase(source="the cat", target=None),
        BlendPhrase(source=None, target="grass"),
    )
    assert words.warnings == ()


def test_blank_phrases_are_absent_ones(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, "a cat", "a red cat", ("", "red"), (None, " "))
    assert words.blend_used == (BlendPhrase(source=None, target="red"),)
    assert masked(words) == [[], [2]]


def test_a_missing_phrase_is_rejected(tokenizer: CLIPTokenizer) -> None:
    assert rejected("blend_phrase_not_found", tokenizer, "a cat", "a tiger", ("cat", "dog")) == (
        "blend_words: got 'dog', which is not in target_prompt 'a tiger'; "
        "allowed: whole words of that prompt in any case, null, or missing_blend=ignore"
    )


def test_an_ignored_missing_phrase_has_no_map_and_a_warning(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, "a cat", "a dog", ("cat", "tiger"), ("hat", None), missing_blend="ignore")
    assert masked(words) == [[2], []]
    assert words.blend_used == (BlendPhrase(source="cat", target=None),)
    assert words.warnings == (
        "blend_phrase_not_found: 'tiger', which is not in target_prompt 'a dog', has no map",
        "blend_phrase_not_found: 'hat', which is not in source_prompt 'a cat', has no map",
    )


def test_auto_marks_the_changed_words_at_their_positions_only(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, "a cat and a cat", "a cat and a Dog")
    assert masked(words) == [[5], [5]]
    assert words.blend_used == (BlendPhrase(source="cat", target="Dog"),)


def test_given_words_come_before_those_found(tokenizer: CLIPTokenizer) -> None:
    assert masked(settle(tokenizer, "a cat on grass", "a dog on grass", ("grass", None))) == [[4], []]


@pytest.mark.parametrize(("blend", "given"), [("none", True), ("none", False), ("given", False)])
def test_no_words_where_none_are_wanted(tokenizer: CLIPTokenizer, blend: str, given: bool) -> None:
    words = settle(tokenizer, "a cat", "a dog", *([("cat", "dog")] if given else []), blend=blend)
    assert masked(words) == [[], []] and words.blend_used == () and words.warnings == ()


def test_equal_prompts_warn(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, "a cat, on the grass", "A Cat on the grass")
    assert masked(words) == [[], []]
    assert words.warnings == (
        "no_change_found: the prompts differ in 'a cat,' -> 'A Cat' only, no word of what the picture shows, so there is no mask",
    )
    same = settle(tokenizer, "a cat", "a cat").warnings
    assert same == ("no_change_found: both prompts are the same, so there is no mask",)
    spaced = settle(tokenizer, "a cat", "a  cat").warnings
    assert spaced == ("no_change_found: the prompts differ in white space only, so there is no mask",)
    assert settle(tokenizer, "a cat", "a cat", grounding="given").warnings == ()


def test_prompts_that_differ_in_an_emoji_only_say_so(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, "a cat \U0001f642 on grass", "a cat \U0001f468\u200d\U0001f467 on grass")
    assert masked(words) == [[], []]
    (warning,) = words.warnings
    assert warning.startswith("no_change_found: the prompts differ in '\U0001f642' -> '\U0001f468")
    assert warning.endswith(" only, no word of what the picture shows, so there is no mask")


@pytest.mark.parametrize(
    ("prompt", "weight"),
    [
        ("a (red:1.5) hat", "(red:1.5)"),
        ("a ((red)) hat", "((red))"),
        ("a [[red]] hat", "[[red]]"),
        ("a (red)1.2 hat", "(red)1.2"),
        ("a (red)++ hat", "(red)++"),
        ("a red++ hat", "red++"),
        ("a [red:blue:0.5] hat", "[red:blue:0.5]"),
        ("a hat <lora:felt:0.8>", "<lora:felt:0.8>"),
    ],
)
def test_weights_of_other_programs_are_text_and_warned_of(tokenizer: CLIPTokenizer, prompt: str, weight: str) -> None:
    words = settle(tokenizer, prompt, "a cat", long_prompt="truncate", blend="none")
    assert f"weights_are_text: {weight!r} in source_prompt is read as it stands: it weighs nothing" in words.warnings
    assert any("in target_prompt" in warning for warning in settle(tokenizer, "a cat", prompt, blend="none").warnings)


@pytest.mark.parametrize("prompt", ["a (red) hat", "a hat at 12:30", "a cat, 3:4", "a [hat]", "a C++ hat", "(a hat)"])
def test_other_brackets_are_no_weights(tokenizer: CLIPTokenizer, prompt: str) -> None:
    assert settle(tokenizer, prompt, prompt, blend="none").warnings == ()


def test_a_number_with_its_point_is_one_word(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, "(red:1.0)", "(red:1.5)")
    assert words.blend_used == (BlendPhrase(source="1.0", target="1.5"),)
    assert [warning.partition(":")[0] for warning in words.warnings] == ["weights_are_text"]


@pytest.mark.parametrize(
    ("source", "target", "old", "new"),
    [
        (
            "\u090f\u0915 \u092c\u093f\u0932\u094d\u0932\u0940 \u092a\u0930",
            "\u090f\u0915 \u0915\u0941\u0924\u094d\u0924\u093e \u092a\u0930",
            "\u092c\u093f\u0932\u094d\u0932\u0940",
            "\u0915\u0941\u0924\u094d\u0924\u093e",
        ),
        ("\u4e00\u53ea\u732b\u5728\u6c99\u53d1\u4e0a", "\u4e00\u53ea\u72d7\u5728\u6c99\u53d1\u4e0a", "\u732b", "\u72d7"),
        ("\u732b\u306f\u30bd\u30d5\u30a1", "\u732b\u306f\u30d9\u30c3\u30c9", "\u30bd\u30d5\u30a1", "\u30d9\u30c3\u30c9"),
        ("a man\u2019s hat", "a man's cat", "hat", "cat"),
        ("red\u2011hot cat", "red-hot dog", "cat", "dog"),
    ],
)
def test_whole_words_of_any_script_change(source: str, target: str, old: str, new: str) -> None:
    spans = [find_phrase(source, old), find_phrase(target, new)]
    changes = find_changes(source, target).content
    assert [(change.source, change.target) for change in changes] == [(spans[0][0], spans[1][0])]


def test_a_change_of_medium_gives_no_mask(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, "a photo of a cat", "a painting of a cat")
    assert masked(words) == [[], []] and words.blend_used == ()
    assert words.warnings == ("style_change_only: 'photo' -> 'painting' concerns the whole picture, so there is no mask",)
    words = settle(tokenizer, "a photo of a cat", "a painting of a dog")
    assert masked(words) == [[5], [5]] and words.blend_used == (BlendPhrase(source="cat", target="dog"),)
    assert words.warnings == ("style_change_masked: 'photo' -> 'painting' concerns the whole picture, the mask confines it",)
    words = settle(tokenizer, "a cat", "a dog, painting")
    assert masked(words) == [[2], [2]] and words.blend_used == (BlendPhrase(source="cat", target="dog"),)
    assert words.warnings == ("style_change_masked: None -> 'painting' concerns the whole picture, the mask confines it",)


@pytest.mark.parametrize(
    ("source", "target", "got"), [("", "a cat", "source_prompt: got ''"), ("a cat", " \n", "target_prompt: got ' \\n'")]
)
def test_empty_prompts_are_rejected(tokenizer: CLIPTokenizer, source: str, target: str, got: str) -> None:
    assert rejected("prompt_empty", tokenizer, source, target) == f"{got}; allowed: a text with at least one word"


LONG = " on the grass" * 6


def test_a_long_prompt_is_truncated_with_a_warning(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, f"a cat{LONG}", f"a red cat{LONG}")
    assert masked(words) == [[], [2]]
    assert words.warnings == (
        f"prompt_truncated: source_prompt has 22 tokens with begin and end, the model reads {LENGTH}",
        f"prompt_truncated: target_prompt has 23 tokens with begin and end, the model reads {LENGTH}",
    )
    assert words.source_ids[-1] == words.target_ids[-1] == tokenizer.eos_token_id
    # The end tokens of both are aligned, and nothing behind the limit is.
    assert words.fold[LENGTH - 1, LENGTH - 1] == 1 and words.fold.shape == (LENGTH, LENGTH)


def test_a_long_prompt_may_be_rejected(tokenizer: CLIPTokenizer) -> None:
    assert rejected("prompt_too_long", tokenizer, "a cat", f"a cat{LONG}", long_prompt="reject") == (
        f"target_prompt: got 22 tokens with begin and end; allowed: up to {LENGTH}, or long_prompt=truncate"
    )


def test_prompts_of_200_kb_are_settled_at_once(tokenizer: CLIPTokenizer) -> None:
    tail = " red cat on grass" * 11_777
    for settings, code in (({"long_prompt": "reject"}, "prompt_too_long"), ({"text_control": "replace"}, None)):
        started = time.process_time()
        if code:
            # The tokens decide before the words are looked at.
            text = rejected(code, tokenizer, f"a cat{tail}", f"{tail} a dog", **settings)
            assert text == (
                f"source_prompt: got 47112 tokens with begin and end; allowed: up to {LENGTH}, or long_prompt=truncate"
            )
        else:
            assert masked(settle(tokenizer, f"a cat{tail}", f"a tiger{tail}", **settings)) == [[2], [2, 3]]
        assert time.process_time() - started < 5
    text = rejected("prompt_too_long", tokenizer, f"a cat{tail}", f"{tail} a dog", blend="none")
    assert text == (
        "source_prompt: got 47110 words, of which both prompts end in the same 0; "
        "allowed: up to 300 words beside those that both end in"
    )


def test_a_changed_word_behind_the_limit_is_rejected(tokenizer: CLIPTokenizer) -> None:
    source, target = f"a cat{LONG} and", f"a cat{LONG} red and"
    for settings in ({}, {"blend": "none"}, {"grounding": "given"}):
        assert rejected("changed_word_truncated", tokenizer, source, target, **settings) == (
            "target_prompt: got 24 tokens with begin and end, with the changed 'red' behind the last that fits; "
            f"allowed: every changed word within the first {LENGTH} tokens"
        )
    for arguments, settings in (
        ([f"a cat{LONG} hat", f"a dog{LONG} hat", ("hat", None)], {}),
        ([f"a cat{LONG} hat", f"a dog{LONG} hat"], {"reweight": (("hat", 2.0),)}),
    ):
        assert "with the changed 'hat' behind" in rejected("changed_word_truncated", tokenizer, *arguments, **settings)


def test_the_last_word_that_fits(tokenizer: CLIPTokenizer) -> None:
    source = "a " * 16 + "cat and and"  # the tokens are begin, 16, cat = 17, ...; position 18 is the end
    assert masked(settle(tokenizer, source, source.replace("cat", "dog"))) == [[17], [17]]
    assert "'cat'" in rejected("changed_word_truncated", tokenizer, f"a {source}", f"a {source}".replace("cat", "dog"))


def test_refine_edits_as_written_out(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, "a cat on the grass", "a tiger on the red grass", reweight=(("GRASS", 0.5), ("tiger", 3.0)))
    assert masked(words) == [[2], [2, 3, 6]]
    alignment = align_tokens(tokenizer("a cat on the grass").input_ids, tokenizer("a tiger on the red grass").input_ids, LENGTH)
    factors = np.ones(LENGTH)
    factors[[2, 3]], factors[7] = 3.0, 0.5
    source, own = np.random.default_rng(0).random((2, 5, LENGTH))
    expected = np.where(alignment.mapper >= 0, source[:, alignment.mapper], own) * factors
    np.testing.assert_allclose(source @ words.fold + own * words.keep, expected, rtol=1e-6)


def test_words_may_have_windows_of_their_own(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, "a cat on the grass", "a tiger on the red grass", word_windows=(("tiger", 0.3), ("red", 1.0)))
    assert words.text_shares is not None
    assert words.text_shares[:9].tolist() == [-1, -1, 0.3, 0.3, -1, -1, 1.0, -1, -1]  # "tiger" is two tokens
    assert settle(tokenizer, "a cat", "a tiger").text_shares is None
    text = rejected("word_windows_factor", tokenizer, "a cat", "a tiger", word_windows=(("tiger", 1.5),))
    assert text == "word_windows: got 1.5 for 'tiger'; allowed: 0 to 1"
    rejected("word_windows_phrase_not_found", tokenizer, "a cat", "a tiger", word_windows=(("cat", 0.5),))
    config = EditConfig(steps=4)
    open_SBT = open_to_text(config, torch.tensor([[0.0, 0.3, 0.5, 1.0]], dtype=torch.float64), 4)
    assert open_SBT.sum(dim=0).tolist() == [[0, 1, 2, 4]]  # int(f (N + 1)) steps, of which there are four


def test_replace_maps_word_to_word(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, "a cat, on grass", "a tiger, on red", text_control="replace", reweight=(("red", 0.5),))
    expected = np.eye(LENGTH, dtype=np.float32)
    expected[:, 2:7] = 0
    expected[2:4, 2:5] = 1 / 3  # "cat," is two tokens, "tiger," three
    expected[4, 5], expected[5, 6] = 1, 0.5
    np.testing.assert_array_equal(words.fold, expected)
    np.testing.assert_array_equal(words.keep, np.zeros(LENGTH))
    text = rejected("replace_word_count", tokenizer, "a cat", "a red cat", text_control="replace")
    assert text.startswith("target_prompt: got 3 words against 2 in source_prompt; allowed: equal word counts")


def test_mended_replacement_of_truncated_prompts(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, f"a cat{LONG}", f"a tiger{LONG}", text_control="replace")
    np.testing.assert_array_equal(words.fold[2, 2:4], [0.5, 0.5])
    np.testing.assert_array_equal(words.fold[np.arange(3, 17), np.arange(4, 18)], np.ones(14))
    np.testing.assert_array_equal(words.fold[:, LENGTH - 1], np.eye(LENGTH)[LENGTH - 1])  # the end token, not a word


def test_blend_weight_multiplies_the_targets_blend_words(tokenizer: CLIPTokenizer) -> None:
    arguments = ("a cat on grass", "a tiger on grass")
    plain = settle(tokenizer, *arguments)
    weighted = settle(tokenizer, *arguments, blend_weight=2.5, reweight=(("tiger on", 2.0),))
    factors = np.ones(LENGTH, dtype=np.float32)
    factors[[2, 3]], factors[4] = 5.0, 2.0
    np.testing.assert_array_equal(weighted.fold, plain.fold * factors)
    np.testing.assert_array_equal(weighted.keep, plain.keep * factors)
    unmasked = settle(tokenizer, *arguments, blend="none", blend_weight=2.5)
    np.testing.assert_array_equal(unmasked.keep, plain.keep)


def test_reweight_is_checked(tokenizer: CLIPTokenizer) -> None:
    assert rejected("reweight_phrase_not_found", tokenizer, "a cat", "a dog", reweight=(("cat", 2.0),)) == (
        "reweight: got 'cat', which is not in target_prompt 'a dog'; allowed: whole words of that prompt in any case"
    )
    for factor in (-0.5, 101.0, float("nan"), float("inf")):
        text = rejected("reweight_factor", tokenizer, "a cat", "a dog", reweight=(("dog", factor),))
        assert text == f"reweight: got {factor} for 'dog'; allowed: 0 to 100"


def test_without_text_guidance_the_target_is_empty(tokenizer: CLIPTokenizer) -> None:
    for text_control in ("refine", "replace"):
        settings: dict[str, Any] = {"text_guidance": False, "text_control": text_control, "blend_weight": 7.0}
        words = settle(tokenizer, "a cat on the grass", "a tiger on the grass", reweight=(("tiger", 2.0),), **settings)
        empty = tokenizer("", padding="max_length", max_length=LENGTH).input_ids
        np.testing.assert_array_equal(words.target_ids, empty)
        assert masked(words) == [[2], []]
        assert words.blend_used == (BlendPhrase(source="cat", target=None),)
        expected = np.eye(LENGTH, dtype=np.float32)
        expected[:, 1] = 0
        expected[6, 1] = 1  # the end token; padding follows by position
        np.testing.assert_array_equal(words.fold, expected)
        np.testing.assert_array_equal(words.keep, np.zeros(LENGTH))
    for blend in ([], [(None, "red")]):  # the target's words have no map, so an insertion has none at all
        words = settle(tokenizer, "a cat", "a red cat", *blend, text_guidance=False)
        assert masked(words) == [[], []] and words.blend_used == () and words.warnings == ()
    assert "not in target_prompt" in rejected(
        "blend_phrase_not_found", tokenizer, "a cat", "a dog", (None, "tiger"), text_guidance=False
    )


def test_given_masks_need_no_words(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, "a cat", "a cat", grounding="given", blend="given")
    assert words.blend_used == () and words.warnings == ()


def test_given_masks_do_not_reject_missing_phrases(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, "a cat", "a dog", ("cat", "tiger"), grounding="given", missing_blend="reject")
    assert words.blend_used == (BlendPhrase(source="cat", target=None),)
    assert words.warnings == ("blend_phrase_not_found: 'tiger', which is not in target_prompt 'a dog', has no map",)


def test_recorded_words_and_alignments_of_whole_runs(oracle: Path, recorded_tokenizer: CLIPTokenizer) -> None:
    cases = json.loads((oracle / "cases" / "cases.json").read_text())["cases"]
    for name, case in cases.items():
        parameters = case["parameters"]
        equalizer = parameters["equalizer"] or {"words": [], "values": []}
        words = settle(
            recorded_tokenizer,
            parameters["prompt_src"],
            parameters["prompt_tar"],
            *([tuple(parameters["blend_words"])] if parameters["blend_words"] else []),
            blend="given",
            text_control="replace" if parameters["is_replace_controller"] else "refine",
            reweight=tuple(zip(equalizer["words"], equalizer["values"], strict=True)),
        )
        with np.load(oracle / "cases" / f"{name}.npz") as arrays:
            np.testing.assert_array_equal(np.stack([words.source_ids, words.target_ids]), arrays["input_ids"])
            if name == "ddim10_missing_word":  # mended: the comma does not hide the word
                assert masked(words) == [[5], [5, 6]] and not arrays["blend_token_mask"][1].any()
            elif parameters["blend_words"]:
                np.testing.assert_array_equal(words.word_mask, arrays["blend_token_mask"])
            factors = arrays["equalizer"][0] if "equalizer" in arrays else np.ones(77)
            if parameters["is_replace_controller"]:
                np.testing.assert_array_equal(words.fold, arrays["mapper"] * factors)
            else:
                assert [int(m) for m in (words.fold != 0).argmax(0)] == np.maximum(arrays["mapper"], 0).tolist()
                np.testing.assert_allclose(words.fold.sum(0), arrays["mapper_alphas"] * factors, rtol=1e-6)
                np.testing.assert_allclose(words.keep, (1 - arrays["mapper_alphas"]) * factors, rtol=1e-6)


@pytest.mark.parametrize(
    ("blend", "expected"),
    [
        ("cat tiger", [("cat", "tiger")]),
        ("  ", []),
        (None, []),
        ([{"source": " red hat ", "target": None}, None, {"target": "dog"}], [("red hat", None), (None, "dog")]),
        ([("red hat", None), BlendPhrase(source=None, target="dog")], [("red hat", None), (None, "dog")]),
    ],
)
def test_short_forms_of_blend_words(blend: Any, expected: list[tuple[str | None, str | None]]) -> None:
    assert parse_blend(blend) == tuple(BlendPhrase(source=source, target=target) for source, target in expected)


@pytest.mark.parametrize(("blend", "count"), [("cat", "1 word"), ("a red cat", "3 words")])
def test_other_numbers_of_words_are_rejected(blend: str, count: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_blend(blend)
    assert error.value.code == "blend_words_malformed"
    assert str(error.value) == (
        f"blend_words: got {blend!r} ({count}); allowed: two words, source and target; phrases as a list of {{source, target}}"
    )


@pytest.mark.parametrize(
    ("blend", "message"),
    [
        (5, "blend_words: got int 5; allowed: a list of {source, target}, or two words like 'cat dog'"),
        ({"source": "cat"}, "blend_words: got dict {'source': 'cat'}; allowed: a list of {source, target}, or two words"),
        (["cat dog"], "blend_words: got an entry str 'cat dog'; allowed: a list of {source, target}"),
        ([("a", "b", "c")], "blend_words: got an entry tuple ('a', 'b', 'c'); allowed: a list of {source, target}"),
        ([(None, 5)], "blend_words.target: got int 5; allowed: a string or null"),
        ([(None, " ")], "blend_words: got a pair without words; allowed: a phrase in source, target or both"),
        ("x" * 1000, f"blend_words: got '{'x' * 79}... (1 word); allowed: two words"),
    ],
)
def test_other_forms_are_rejected_under_one_code(blend: Any, message: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_blend(blend)
    assert error.value.code == "blend_words_malformed" and str(error.value).startswith(message)


def test_text_control_chosen_by_the_number_of_words(tokenizer: CLIPTokenizer) -> None:
    for source, target, chosen in (("a cat", "a dog", "replace"), ("a cat", "a big dog", "refine")):
        own = settle(tokenizer, source, target, text_control="auto")
        expected = settle(tokenizer, source, target, text_control=chosen)
        np.testing.assert_array_equal(own.fold, expected.fold)
        np.testing.assert_array_equal(own.keep, expected.keep)


def test_words_that_only_the_target_has_weigh_more(tokenizer: CLIPTokenizer) -> None:
    words = settle(tokenizer, "a cat on grass", "a big tiger on grass", new_word_weight=15.0)
    factors = words.fold.sum(axis=0) + words.keep
    strong = [*tokens_of(tokenizer, "a big tiger on grass", "big"), *tokens_of(tokenizer, "a big tiger on grass", "tiger")]
    assert np.flatnonzero(factors == 15).tolist() == strong and set(factors.tolist()) == {1.0, 15.0}


@pytest.mark.parametrize(
    ("text", "words", "spaced"),
    [
        ("a cat's 3.5 (red-hot) hat,", "a|cat's|3.5|red-hot|hat", "a|cat's|3.5|(red-hot)|hat,"),
        (
            "\u0928\u0940\u0932\u0940 \u092c\u093f\u0932\u094d\u0932\u0940\u0964",
            "\u0928\u0940\u0932\u0940|\u092c\u093f\u0932\u094d\u0932\u0940",
            "\u0928\u0940\u0932\u0940|\u092c\u093f\u0932\u094d\u0932\u0940\u0964",
        ),
        (
            "\u06af\u0631\u0628\u0647\u200c\u0647\u0627",
            "\u06af\u0631\u0628\u0647\u200c\u0647\u0627",
            "\u06af\u0631\u0628\u0647\u200c\u0647\u0627",
        ),
        ("\u732b\u5728\u30bd\u30d5\u30a1", "\u732b|\u5728|\u30bd\u30d5\u30a1", "\u732b|\u5728|\u30bd\u30d5\u30a1"),
        (
            "\u0e41\u0e21\u0e27\u0e19\u0e31\u0e48\u0e07 cat",
            "\u0e41\u0e21\u0e27\u0e19\u0e31\u0e48\u0e07|cat",
            "\u0e41\u0e21\u0e27\u0e19\u0e31\u0e48\u0e07|cat",
        ),
        ("\u2764\ufe0f cat", "cat", "\u2764\ufe0f|cat"),
    ],
)
def test_words_of_a_text(text: str, words: str, spaced: str) -> None:
    assert [text[start:end] for start, end in split_words(text)] == words.split("|")
    assert [text[start:end] for start, end in spaced_words(text)] == spaced.split("|")
