"""Which row each row looks at: windows in steps, and the routes of every published way of taking over self-attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vimaedit.config import EditConfig, Windows
from vimaedit.methods.base import Method
from vimaedit.step.rows import RowKind, RowLayout, shared_edits
from vimaedit.step.solvers import num_skipped


@dataclass(frozen=True, eq=False)
class Routes:
    """The row that each row looks at, at every step: (S, R) int64 each. None: `keys` as `queries`; else every row is its own."""

    queries: Tensor | None
    image: Tensor | None
    keys: Tensor | None = None
    values: Tensor | None = None
    features: Tensor | None = None


def open_windows(config: EditConfig, windows: Sequence[Windows], steps: int) -> dict[str, Tensor]:
    """Return for every kind of window at which of the executed steps it is open for whom, (S, B) bool.

    Of N steps of the full grid self, image and feature windows last int(f N) executed steps, the text window int(f (N + 1)). With
    an auxiliary branch the clock counts skipped steps: the self window is open while (i + 1) / N < f, the text window while <= f.
    With `values` the self window is open from `mutual_start` on.
    """
    count = config.steps
    text_B = torch.tensor([w.text for w in windows], dtype=torch.float64)
    step_S1 = torch.arange(steps)[:, None]
    if config.parts.has_auxiliary:
        passed = [(i + 1 + num_skipped(config)) / count for i in range(steps)]
        return {
            "self": torch.tensor([[p < w.self for w in windows] for p in passed]),
            "text": open_to_text(config, text_B, steps),
            "image": step_S1 < torch.tensor([int(w.image * count) for w in windows])[None, :],
        }
    ends = {
        "self": [int(w.self * count) for w in windows],
        "image": [int(w.image * count) for w in windows],
        "feature": [int(w.feature * count) for w in windows],
    }
    open_SB = {name: step_S1 < torch.tensor(end_B)[None, :] for name, end_B in ends.items()}
    open_SB["text"] = open_to_text(config, text_B, steps)
    if config.parts.routing == "values":
        open_SB["self"] = (step_S1 >= config.mutual_start).expand(-1, len(windows))
    return open_SB


def open_to_text(config: EditConfig, shares: Tensor, steps: int) -> Tensor:
    """Return at which of the executed steps text windows of the given shares are open, (B, ...) float64 -> (S, B, ...) bool."""
    step = torch.arange(steps).view(-1, *[1] * shares.ndim)
    if config.parts.has_auxiliary:
        return (step + 1 + num_skipped(config)).double() / config.steps <= shares
    return step < (shares * (config.steps + 1)).long()


def shared_steps(config: EditConfig, steps: int) -> int:
    """Return for how many of the executed steps, from the first, a source is the same whatever its picture is to become.

    It is until noise is injected inside a mask that follows from the target too. At the step that finds the first mask the
    prediction is made before.
    """
    injects = config.parts.spread == "masked" and config.source_variance and config.variance != "zero" and config.eta > 0
    if not injects or not (config.reads_words or config.takes_mask):
        return steps
    return 1 if config.takes_mask else min(steps, max(1, int(config.grounding_start * config.steps)))


def layout_of_step(
    layout: RowLayout, config: EditConfig, self_open_B: Tensor, *, shares: bool = False, guides: bool = True
) -> RowLayout:
    """Leave out the rows that a step does not need; with `shares` edits of one picture have one source.

    A step that does not guide has no unconditional row of a branch that has a conditional one.
    While the self window is open an auxiliary row equals the source's, so it is not computed; afterwards nothing reads the
    source's unconditional row, unless the source is guided. A batch whose requests differ has both.
    """
    if not config.parts.has_auxiliary:
        shared = shared_edits(config, layout.num_requests) if shares else 1
        conditional = {kind.branch for kind in layout.kinds if kind.conditional}
        kept = tuple(kind for kind in layout.kinds if guides or kind.conditional or kind.branch not in conditional)
        return RowLayout(layout.num_requests, kept, shared)
    kinds = list(layout.kinds)
    if bool(self_open_B.all()):
        kinds = [kind for kind in kinds if kind not in (RowKind.AUXILIARY_UNCOND, RowKind.AUXILIARY_COND)]
    elif not bool(self_open_B.any()) and config.source_guidance == 1:
        kinds.remove(RowKind.SOURCE_UNCOND)
    return RowLayout(layout.num_requests, tuple(kinds))


def route_rows(layout: RowLayout, parts: Method, open_SB: dict[str, Tensor], device: torch.device) -> Routes:
    """Route the rows of one layout.

    `weights`: the target's conditional row uses the source's queries and keys. `queries`: its unconditional row, if any, too.
    `values`: both use the source's keys and values. `auxiliary`: see `_auxiliary_routes`.
    """
    source, free, target = RowKind.SOURCE_COND, RowKind.TARGET_UNCOND, RowKind.TARGET_COND
    if source not in layout.kinds:
        return Routes(queries=None, image=None)
    own_SR = torch.arange(layout.num_rows).repeat(len(open_SB["self"]), 1)

    def one(window: str) -> Tensor:
        return _look(own_SR, layout, target, (source, target), open_SB[window]).to(device)

    def both(window: str) -> Tensor:
        free_SR = _look(own_SR, layout, free, (source, free), open_SB[window]) if free in layout.kinds else own_SR
        return _look(free_SR, layout, target, (source, target), open_SB[window]).to(device)

    image = one("image")
    if parts.routing == "weights":
        return Routes(queries=one("self"), image=image)
    if parts.routing == "queries":
        return Routes(queries=both("self"), image=image, features=both("feature") if parts.copies_features else None)
    if parts.routing == "values":
        return Routes(queries=own_SR.to(device), keys=both("self"), values=both("self"), image=image)
    if parts.routing == "auxiliary":
        queries, keys, values = (rows_SR.to(device) for rows_SR in _auxiliary_routes(layout, own_SR, open_SB["self"]))
        return Routes(queries=queries, keys=keys, values=values, image=image)
    return Routes(queries=None, image=image)


def _auxiliary_routes(layout: RowLayout, own_SR: Tensor, early_SB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Route three branches, conditional and unconditional rows apart: while the window is open every row uses the source's
    queries and keys, and the auxiliary one its values; afterwards the auxiliary row looks with the target's queries at the
    source's keys and values."""
    queries, keys, values = own_SR, own_SR, own_SR
    halves = (
        (RowKind.SOURCE_UNCOND, RowKind.TARGET_UNCOND, RowKind.AUXILIARY_UNCOND),
        (RowKind.SOURCE_COND, RowKind.TARGET_COND, RowKind.AUXILIARY_COND),
    )
    for source, target, auxiliary in halves:
        if source in layout.kinds:
            queries = _look(queries, layout, target, (source, target), early_SB)
            keys = _look(keys, layout, target, (source, target), early_SB)
        if auxiliary in layout.kinds:
            queries = _look(queries, layout, auxiliary, (source, target), early_SB)
            keys = _look(keys, layout, auxiliary, (source, source), early_SB)
            values = _look(values, layout, auxiliary, (source, source), early_SB)
    return queries, keys, values


def _look(rows_SR: Tensor, layout: RowLayout, kind: RowKind, at: tuple[RowKind, RowKind], open_SB: Tensor) -> Tensor:
    """Let the rows of a kind look at those of another: `at` while the window is open, and when it is closed."""
    opened, closed = (layout.indices(other) for other in at)
    rows_SR = rows_SR.clone()
    rows_SR[:, layout.indices(kind)] = torch.where(open_SB, opened, closed)
    return rows_SR
