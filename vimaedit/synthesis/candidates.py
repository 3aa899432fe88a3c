"""Candidates of one pair: the same edit over seeds and strengths, of which the best is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vimaedit.scenes.draws import Draws
from vimaedit.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One try at an edit: its number, the seed of its noise, and what it overrides (in the names of `overrides`)."""

    number: int
    seed: int
    overrides: Mapping[str, float]


def spread_candidates(
    seed: int, record_id: str, edit: int, count: int, ranges: Mapping[str, Sequence[float]]
) -> list[Candidate]:
    """Spread `count` candidates over the ranges [low, high] of several settings, as a Latin square does.

    Each range is cut into `count` equal parts; every part gives its middle to one candidate, in an order of its own for each
    setting. Nothing but the run's seed, the record's id and the number of its edit enters. Candidates of the same number share
    their noise among the edits of a record, so that editors can share what they do with its source.
    """
    orders = {
        name: Draws(derive_seed(seed, record_id, edit, name), 0).shuffled(range(count))
        for name, values in ranges.items()
        if values
    }
    return [
        Candidate(
            number=number,
            seed=derive_seed(seed, record_id, number),
            overrides={
                name: ranges[name][0] + (ranges[name][1] - ranges[name][0]) * (order[number] + 0.5) / count
                for name, order in orders.items()
            },
        )
        for number in range(count)
    ]
