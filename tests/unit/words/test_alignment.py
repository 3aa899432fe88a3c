"""Token alignment and replacement against a brute-force search, hand-worked cases and the recorded vectors."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import CLIPTokenizer

from vimaedit.errors import RequestError
from vimaedit.words.alignment import align_sequences, align_tokens, fold_refine, fold_replace, replacement_matrix


@pytest.fixture(scope="module")
def vectors(oracle: Path) -> dict[str, Any]:
    return json.loads((oracle / "cases" / "tokens.json").read_text())


@pytest.fixture(scope="module")
def tokenizer(oracle: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(oracle / "models" / "sd" / "tokenizer")


def best_score(source: list[int], target: list[int]) -> int:
    @functools.cache
    def score(m: int, n: int) -> int:
        if not m or not n:
            return 0
        return max(score(m, n - 1), score(m - 1, n), score(m - 1, n - 1) + (1 if source[m - 1] == target[n - 1] else -1))

    return score(len(source), len(target))


@pytest.mark.parametrize("seed", range(11))
def test_alignment_is_optimal_and_monotone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = rng.integers(0, 5, 13).tolist(), rng.integers(0, 5, 17).tolist()
    mapper = align_sequences(source, target)
    aligned = [(m, n) for n, m in enumerate(mapper) if m >= 0]
    assert all(source[m] == target[n] for m, n in aligned)
    assert [m for m, _ in aligned] == sorted({m for m, _ in aligned})
    assert len(aligned) == best_score(source, target)


@pytest.mark.parametrize(
    ("source", "target", "mapper"),
    [
        ("", "xyz", [-1, -1, -1]),
        ("xyz", "", []),
        ("acb", "adb", [0, -1, 2]),
        ("aab", "ab", [0, 2]),  # traced from the end, the gap in the target comes before the match
        ("ab", "aab", [0, -1, 1]),  # and so does the gap in the source
        ("ab", "ba", [1, -1]),  # of both gaps the one in the source comes first
    ],
)
def test_equal_scores_prefer_the_gap_in_the_source_then_in_the_target(source: str, target: str, mapper: list[int]) -> None:
    assert align_sequences(source, target) == mapper


def test_padding_follows_by_position_when_the_source_is_longer() -> None:
    alignment = align_tokens([1, 5, 6, 7, 2], [1, 7, 2], 7)
    np.testing.assert_array_equal(alignment.mapper, [0, 3, 4, 3, 4, 5, 6])
    np.testing.assert_array_equal(alignment.alphas, np.ones(7))
    assert (alignment.mapper.dtype, alignment.alphas.dtype) == (np.int64, np.float32)


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^target_ids: got 6 tokens; allowed: up to 5, truncate first$"):
        align_tokens([1, 2], [1, 3, 3, 3, 3, 2], 5)


def test_refinement_equals_the_recorded_vectors(vectors: dict[str, Any], tokenizer: CLIPTokenizer) -> None:
    length = tokenizer.model_max_length
    checked = 0
    for vector in vectors["refinement"]:
        source, target = tokenizer(vector["source"]).input_ids, tokenizer(vector["target"]).input_ids
        assert (len(source), len(target)) == (vector["source_len"], vector["target_len"])
        if max(len(source), len(target)) > length:
            continue
        alignment = align_tokens(source, target, length)
        np.testing.assert_array_equal(alignment.mapper, vector["mapper"])
        np.testing.assert_array_equal(alignment.alphas, vector["alphas"])
        checked += 1
    assert checked == 16


def test_mended_alignment_of_a_truncated_source_stays_within_it(vectors: dict[str, Any], tokenizer: CLIPTokenizer) -> None:
    vector = next(v for v in vectors["refinement"] if v["source_len"] > 77 and "mapper" in v)
    assert max(vector["mapper"]) > 76  # the reference aligns with tokens that the model never reads
    source = tokenizer(vector["source"], truncation=True).input_ids
    mapper = align_tokens(source, tokenizer(vector["target"]).input_ids, 77).mapper
    assert (mapper[0], mapper[3]) == (0, 76)  # begin to begin, end to end
    assert mapper.max() == 76


def words_of(text: str, tokenizer: CLIPTokenizer) -> list[list[int]]:
    """Token indices of the words between spaces, counted by tokenizing every word alone."""
    words, position = [], 1
    for word in text.split():
        count = len(tokenizer(word).input_ids) - 2
        words.append(list(range(position, position + count)))
        position += count
    return words


def test_replacement_equals_the_recorded_vectors_where_no_word_is_shifted(
    vectors: dict[str, Any], tokenizer: CLIPTokenizer
) -> None:
    checked = mended = refused = 0
    for vector in vectors["replacement"]:
        source, target = (words_of(vector[side], tokenizer) for side in ("source", "target"))
        if "error" in vector:
            with pytest.raises(RequestError, match="words against"):
                replacement_matrix(source, target, 77)
            refused += 1
            continue
        if max(len(s) for s in (sum(source, []), sum(target, []))) > 75:
            continue
        expected = np.zeros((77, 77), dtype=np.float32)
        for row, column, value in vector["nonzero"]:
            expected[row, column] = value
        matrix = replacement_matrix(source, target, 77)
        # The reference shifts what stands between or behind the words it replaced, where the token counts differ.
        own_columns = all(expected[s, t] == 1 for s, t in unchanged_tokens(vector, source, target))
        if own_columns:
            np.testing.assert_array_equal(matrix, expected)
            checked += 1
        else:
            assert all(matrix[s, t] == 1 and matrix[:, t].sum() == 1 for s, t in unchanged_tokens(vector, source, target))
            mended += 1
    assert checked >= 8 and mended >= 2 and refused >= 8
    assert checked + mended + refused >= len(vectors["replacement"]) - 2


def unchanged_tokens(vector: dict[str, Any], source: list[list[int]], target: list[list[int]]) -> list[tuple[int, int]]:
    texts = zip(vector["source"].split(), vector["target"].split(), strict=True)
    return [
        pair for (old, new), s, t in zip(texts, source, target, strict=True) if old == new for pair in zip(s, t, strict=True)
    ]


def test_mended_words_behind_a_replaced_one_keep_their_own_columns() -> None:
    # "a cat on grass" -> "a ti+ger on grass": the reference gives "on" the column of "grass".
    matrix = replacement_matrix([[1], [2], [3], [4]], [[1], [2, 3], [4], [5]], 7)
    expected = np.zeros((7, 7), dtype=np.float32)
    expected[[0, 1, 3, 4, 6], [0, 1, 4, 5, 6]] = 1
    expected[2, 2:4] = 0.5
    np.testing.assert_array_equal(matrix, expected)


def test_one_target_token_takes_the_sum_of_several() -> None:
    matrix = replacement_matrix([[1, 2, 3], [4]], [[1], [2]], 7)
    np.testing.assert_array_equal(matrix[:, 1], [0, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(matrix[:, 2], [0, 0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(matrix[:, 3:], np.eye(7)[:, 3:])


def test_a_word_beyond_the_limit_leaves_its_target_by_position() -> None:
    matrix = replacement_matrix([[1], []], [[1], [2, 3]], 5)
    np.testing.assert_array_equal(matrix, np.eye(5))


def test_unequal_word_counts_are_rejected() -> None:
    with pytest.raises(RequestError) as error:
        replacement_matrix([[1], [2]], [[1], [2], [3]], 7)
    assert error.value.code == "replace_word_count"
    assert str(error.value) == (
        "target_prompt: got 3 words against 2 in source_prompt; "
        "allowed: equal word counts with text_control=replace, or text_control=refine"
    )


def test_fold_refine_equals_the_edit_written_out() -> None:
    rng = np.random.default_rng(3)
    source, own = rng.random((2, 5, 7)).astype(np.float32)
    mapper, alphas = np.array([0, -1, 2, 2, -1, 5, 6]), np.array([1, 0, 1, 1, 0, 1, 1], dtype=np.float32)
    equalizer = np.array([1, 2.5, 1, 0.3, 0, 1, 7], dtype=np.float32)
    fold, keep = fold_refine(mapper, alphas, equalizer)
    edited = np.stack([(source[:, m] if m >= 0 else own[:, n]) * equalizer[n] for n, m in enumerate(mapper)], axis=1)
    np.testing.assert_allclose(source @ fold + own * keep, edited, rtol=1e-6)
    assert (fold.dtype, keep.dtype) == (np.float32, np.float32)


def test_fold_replace_equals_the_edit_written_out() -> None:
    source = np.random.default_rng(5).random((3, 5)).astype(np.float32)
    matrix = replacement_matrix([[1], [2]], [[1, 2], [3]], 5)
    equalizer = np.array([1, 2, 2, 0.5, 1], dtype=np.float32)
    fold, keep = fold_replace(matrix, equalizer)
    expected = np.stack([source[:, 0], source[:, 1], source[:, 1], source[:, 2] * 0.5, source[:, 4]], axis=1)
    np.testing.assert_allclose(source @ fold, expected, rtol=1e-6)
    np.testing.assert_array_equal(keep, np.zeros(5))
