"""How the target's text attention follows the source's: aligned tokens, word-by-word replacement, and their folding.

The edit is linear in the token axis: P_edit = P_source @ fold + P_own * keep, for attention weights P of shape (..., T).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vimaedit.errors import RequestError

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

GAP_IN_SOURCE, GAP_IN_TARGET, DIAGONAL = 1, 2, 3


@dataclass(frozen=True, eq=False)
class TokenAlignment:
    """Which source token every target token takes its attention from.

    Shapes: `mapper` (T,) int64, -1 for an inserted token; `alphas` (T,) float32, 0 for an inserted token, else 1.
    """

    mapper: Int64Array
    alphas: Float32Array


def align_sequences(source: Sequence[Hashable], target: Sequence[Hashable]) -> list[int]:
    """Align two sequences globally; return for every target item the index of its source item, -1 where it has none.

    Match +1, mismatch -1, gap 0. On equal scores a gap in the source is preferred, then a gap in the target, then the
    diagonal; since two gaps beat a mismatch, aligned items are always equal.
    """
    scores = [0] * (len(target) + 1)
    steps = [bytearray([GAP_IN_SOURCE] * (len(target) + 1))]
    for source_item in source:
        row, step = [0], bytearray([GAP_IN_TARGET])
        for n, target_item in enumerate(target, start=1):
            left, up = row[n - 1], scores[n]
            diagonal = scores[n - 1] + (1 if source_item == target_item else -1)
            best = max(left, up, diagonal)
            row.append(best)
            step.append(GAP_IN_SOURCE if best == left else GAP_IN_TARGET if best == up else DIAGONAL)
        scores = row
        steps.append(step)
    mapper = [-1] * len(target)
    m, n = len(source), len(target)
    while m or n:
        move = steps[m][n]
        if move == DIAGONAL:
            mapper[n - 1] = m - 1
        m -= move != GAP_IN_SOURCE
        n -= move != GAP_IN_TARGET
    return mapper


def align_tokens(source_ids: Sequence[int], target_ids: Sequence[int], length: int) -> TokenAlignment:
    """Align two token sequences, begin and end token included, and pad to `length` (T).

    Padding follows by position, also where the source is longer: such a padding token takes the attention of a source word.

    Raises: ValueError if a sequence is longer than `length`.
    """
    for name, ids in (("source_ids", source_ids), ("target_ids", target_ids)):
        if len(ids) > length:
            raise ValueError(f"{name}: got {len(ids)} tokens; allowed: up to {length}, truncate first")
    mapper = np.arange(length, dtype=np.int64)
    mapper[: len(target_ids)] = align_sequences(source_ids, target_ids)
    return TokenAlignment(mapper, (mapper >= 0).astype(np.float32))


def replacement_matrix(
    source_words: Sequence[Sequence[int]], target_words: Sequence[Sequence[int]], length: int
) -> Float32Array:
    """Map words one to one; return (T, T), rows = source tokens, columns = target tokens.

    Each word is given by the indices of its tokens. Equal token counts map token by token; otherwise each of n target tokens
    takes 1/n of the sum over the source word's tokens. Whatever belongs to no word (begin, end, padding) follows by position.

    Reference: behind a replaced word of another token count it shifts the later words by the difference; here every word
    keeps its own columns.

    Raises: RequestError if the numbers of words differ.
    """
    if len(source_words) != len(target_words):
        raise RequestError(
            "replace_word_count",
            field="target_prompt",
            got=f"{len(target_words)} words against {len(source_words)} in source_prompt",
            allowed="equal word counts with text_control=replace, or text_control=refine",
        )
    matrix = np.zeros((length, length), dtype=np.float32)
    for source, target in zip(source_words, target_words, strict=True):
        if len(source) == len(target):
            matrix[list(source), list(target)] = 1
        elif target:
            matrix[np.ix_(list(source), list(target))] = 1 / len(target)
    unclaimed = np.flatnonzero(~matrix.any(axis=0))
    matrix[unclaimed, unclaimed] = 1
    return matrix


def fold_refine(mapper: ArrayLike, alphas: ArrayLike, equalizer: ArrayLike) -> tuple[Float32Array, Float32Array]:
    """Fold an alignment a with alphas c and factors e: fold[a(n), n] = c(n) e(n), keep(n) = (1 - c(n)) e(n).

    Shapes: all arguments (T,); returns fold (T, T) and keep (T,), float32.
    """
    source_of, alpha, factor = np.asarray(mapper), np.asarray(alphas, np.float32), np.asarray(equalizer, np.float32)
    length = len(source_of)
    fold = np.zeros((length, length), dtype=np.float32)
    fold[source_of, np.arange(length)] = alpha * factor
    return fold, (1 - alpha) * factor


def fold_replace(matrix: ArrayLike, equalizer: ArrayLike) -> tuple[Float32Array, Float32Array]:
    """Fold a replacement matrix (T, T) with factors e (T,): fold = matrix * e, keep = 0."""
    fold = np.asarray(matrix, np.float32) * np.asarray(equalizer, np.float32)
    return fold, np.zeros(fold.shape[1], dtype=np.float32)
