"""InfEdit's alignment: what has no partner is paired by likeness, and the tokens that the edit is about."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vimaedit.words.alignment import Float32Array, Int64Array


def link_tokens(mapper: Int64Array, length: int, source_states: Float32Array, target_states: Float32Array) -> Int64Array:
    """Pair one token of every run of target tokens without a source with the likest unused source token beside the run.

    Of a run's target tokens and the source tokens between the partners of its neighbours, the pair with the largest cosine is
    linked, the first of equals; a run with no such source token stays as it is.

    Shapes: `mapper` (T,), -1 without a source; `length` tokens of the target with both ends; states (T, E) -> (T,).
    """
    linked = mapper.copy()
    likeness = _unit(target_states) @ _unit(source_states).T
    n = 0
    while n < length:
        if mapper[n] >= 0:
            n += 1
            continue
        end = n
        while end < length and mapper[end] < 0:
            end += 1
        candidates = range(int(mapper[n - 1]) + 1, int(mapper[end]))
        if len(candidates):
            block = likeness[n:end, candidates.start : candidates.stop]
            token, source = np.unravel_index(int(block.argmax()), block.shape)
            linked[n + int(token)] = candidates.start + int(source)
        n = end
    return linked


def scan_tokens(ids: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Find a word's tokens in a text from left to right, each the first one behind that before; stop at one that is not there."""
    found, start = [], 0
    for token in wanted:
        if token not in ids[start:]:
            break
        position = start + list(ids[start:]).index(token)
        found.append(position)
        start = position + 1
    return found


def edited_tokens(
    mapper: Int64Array, linked: Int64Array, source_ids: Sequence[int], target_ids: Sequence[int], wanted: Sequence[int]
) -> list[int]:
    """Return the target tokens that the edit is about: the word's own, and those linked to a source token that is one of its."""
    own = scan_tokens(target_ids, wanted)
    by_link = [
        n for n in range(len(target_ids)) if mapper[n] < 0 and linked[n] >= 0 and source_ids[int(linked[n])] in set(wanted)
    ]
    return sorted({*own, *by_link})


def _unit(states: Float32Array) -> Float32Array:
    unit: Float32Array = states / np.linalg.norm(states, axis=1, keepdims=True)
    return unit
