"""The editing stage: an actor that hosts one editor and runs a unit's fixed batches through it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.context import Row, RunContext, from_block, to_block
from pipelines.plan import Unit, batches
from pipelines.progress import Report
from pipelines.records import shown
from pipelines.secrets import mask_urls
from pipelines.weights import with_local_weights
from vimaedit.errors import VimaeditError
from vimaedit.types import Editor, EditRequest, EditResult, Status

logger = logging.getLogger(__name__)

Slots = list[Row | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A batch's slots (None: a hole), and all rows that are finished with it, those that were stopped before among them."""

    slots: Slots
    rows: list[Row]


class StoppedEarly(VimaeditError):
    """The run is hopeless; raised in an editing actor to end it."""


class EditActor:
    """Hosts one editor; called by Ray Data with the block of one unit."""

    def __init__(self, context: RunContext, report: Report | None = None) -> None:
        # Before torch loads OpenMP: idle threads sleep instead of spinning, which would slow the stages that share the cores
        # (measured with four busy processes on two cores: 0.6 s a batch against 15 s).
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch

        from vimaedit.loading import load_editor

        torch.set_num_threads(context.threads)
        job = with_local_weights(context.job)
        self.context = context
        self.report = report
        self.editor: Editor = load_editor(job, job)

    def __call__(self, block: pa.Table) -> pa.Table:
        (unit_rows,) = from_block(block)
        self.edit_rows(unit_rows.unit, unit_rows.rows)
        return to_block(unit_rows)

    def edit_rows(self, unit: Unit, rows: Sequence[Row]) -> None:
        """Edit the requests of one unit in place.

        Raises: StoppedEarly where the run has become hopeless.
        """
        from vimaedit.noise import record_seed

        for row in rows:
            if row.seed is None:
                row.seed = record_seed(self.context.job.seed, row.id)
        num_finished = 0
        for batch in unit_batches(unit, rows, self.context.batch_size, keep_shape=self.context.job.canvas.fit == "keep"):
            if any(row is not None for row in batch.slots):
                edit_batch(self.editor, batch.slots)
            if self.report is not None and batch.rows:
                reason = self.report(unit.id, num_finished, [str(row.status) for row in batch.rows])
                if reason is not None:
                    raise StoppedEarly(reason)
            num_finished += len(batch.rows)
        for row in rows:
            row.clip_image = row.given_mask = None  # nothing later reads them


def unit_batches(unit: Unit, rows: Sequence[Row], batch_size: int, *, keep_shape: bool) -> Iterator[Batch]:
    """Cut a unit into its batches; requests without a picture to edit and those beyond a limit leave holes.

    The shape of a batch follows from the plan, never from which of its requests are good. With several canvas shapes
    (`keep_shape`) the requests of each shape are grouped in input order; those without a canvas have no slot then and
    finish with the batch of the next request that has one.
    """
    if not keep_shape:
        places: Slots = [*rows, *[None] * (unit.count - len(rows))]
        yield from _cut(places, [[] if row is None else [row] for row in places], batch_size)
        return
    groups: dict[tuple[int, ...], tuple[Slots, list[list[Row]]]] = {}
    waiting: list[Row] = []
    for row in rows:
        waiting.append(row)
        if row.canvas is not None:
            members, finished = groups.setdefault(row.canvas.shape, ([], []))
            members.append(row)
            finished.append(waiting)
            waiting = []
    for members, finished in groups.values():
        yield from _cut(members, finished, batch_size)
    if waiting:
        yield Batch(slots=[], rows=waiting)


def _cut(places: Slots, finished: Sequence[list[Row]], batch_size: int) -> Iterator[Batch]:
    """Cut places into batches; with each place the rows of `finished` at its position are finished."""
    for members, num_slots in batches(len(places), batch_size):
        slots: Slots = [places[position] for position in members]
        slots = [row if row is not None and row.status is None else None for row in slots]
        slots += [None] * (num_slots - len(slots))
        yield Batch(slots=slots, rows=[row for position in members for row in finished[position]])


def edit_batch(editor: Editor, slots: Slots) -> None:
    """Edit one batch in place. An exception costs no neighbour: each request then runs alone, in its own slot."""
    try:
        _run(editor, slots)
        return
    except Exception as error:
        ids = ", ".join(shown(row.id) for row in slots if row is not None)
        logger.warning("batch of %s: %s: %s; each runs alone now", ids, type(error).__name__, mask_urls(str(error)))
    for position, row in enumerate(slots):
        if row is None:
            continue
        alone: Slots = [row if place == position else None for place in range(len(slots))]
        started = time.perf_counter()
        try:
            _run(editor, alone)
        except Exception as error:
            row.seconds = time.perf_counter() - started
            row.stop(Status.FAILED, "edit", type(error).__name__, f"record {shown(row.id)}: {type(error).__name__}: {error}")


def _run(editor: Editor, slots: Slots) -> None:
    for row in slots:
        if row is not None:
            row.attempts += 1
    results = editor([None if row is None else _request(row) for row in slots])
    for row, result in zip(slots, results, strict=True):
        if row is not None:
            if result is None:
                raise RuntimeError("the editor gave no result for a request")
            _take(row, result)


def _request(row: Row) -> EditRequest:
    assert row.canvas is not None and row.source_prompt is not None and row.target_prompt is not None and row.seed is not None
    return EditRequest(
        id=row.id,
        image=row.canvas,
        clip_image=row.clip_image,
        source_prompt=row.source_prompt,
        target_prompt=row.target_prompt,
        blend=row.blend,
        given_mask=row.given_mask,
        seed=row.seed,
        overrides=row.overrides,
    )


def _take(row: Row, result: EditResult) -> None:
    row.status = result.status
    row.edited, row.edit_mask, row.critical_mask = result.image, result.edit_mask, result.critical_mask
    row.blend, row.grounded = result.blend_used, result.grounded
    row.error_stage, row.error_type, row.error_message = result.error_stage, result.error_type, result.message
    row.warnings = [*row.warnings, *result.warnings]
    row.seconds = result.seconds
