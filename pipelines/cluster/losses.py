"""Why rows got no edit: counted by the type of error, with one example of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.store.masking import cut, cut_quotes, mask_urls, printable

EXAMPLE_CHARACTERS = 300
SHOWN_LOSSES = 5


@dataclass(frozen=True, kw_only=True)
class Loss:
    """How many rows ended in one type of error, in what status, and what the first of them says."""

    status: str
    count: int
    example: str


Losses = dict[str, Loss]  # by error type, in the order of the rows
Outcome = tuple[str, str | None, str | None]  # a row's status, error type and message


def count_losses(outcomes: Iterable[Outcome]) -> Losses:
    """Count the rows that have an error type."""
    found: Losses = {}
    for status, kind, message in outcomes:
        if kind is None:
            continue
        example = (
            found[kind].example if kind in found else cut(printable(mask_urls(cut_quotes(message or ""))), EXAMPLE_CHARACTERS)
        )
        found[kind] = Loss(status=status, count=1 + (found[kind].count if kind in found else 0), example=example)
    return found


def add_losses(many: Iterable[Mapping[str, Loss]]) -> Losses:
    """Add up losses; the first example of each type stays."""
    total: Losses = {}
    for losses in many:
        for kind, loss in losses.items():
            total[kind] = dataclasses.replace(total[kind], count=total[kind].count + loss.count) if kind in total else loss
    return total


def losses_to_json(losses: Mapping[str, Loss]) -> dict[str, Any]:
    """Return losses as plain values."""
    return {kind: dataclasses.asdict(loss) for kind, loss in losses.items()}


def losses_from_json(content: Mapping[str, Any] | None) -> Losses:
    """Read what `losses_to_json` gave; nothing where an earlier version wrote none."""
    return {kind: Loss(**loss) for kind, loss in (content or {}).items()}


def losses_lines(losses: Mapping[str, Loss]) -> list[str]:
    """Say the reasons in a line each, the most frequent first."""
    order = sorted(losses.items(), key=lambda item: -item[1].count)
    lines = [f"lost:   {loss.count} {loss.status}: {kind}, such as {loss.example}" for kind, loss in order[:SHOWN_LOSSES]]
    if len(order) > SHOWN_LOSSES:
        lines.append(
            f"lost:   {sum(loss.count for _, loss in order[SHOWN_LOSSES:])} for {len(order) - SHOWN_LOSSES} other reasons"
        )
    return lines
