"""The editing stage: an actor that hosts one editor and runs a unit's fixed batches through it."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import pyarrow as pa
import ray

from pipelines.cluster.counter import Report
from pipelines.cluster.logs import about, fields, start_worker
from pipelines.cluster.telemetry import observe_batch
from pipelines.cluster.weights import with_local_weights
from pipelines.edit.blocks import from_block, to_block
from pipelines.edit.deaths import Deaths, Suspects, request_key, starting, this_worker, write_suspects
from pipelines.edit.riding import RidingMetrics
from pipelines.output.context import RunContext
from pipelines.output.plan import Unit, batches
from pipelines.records.row import Row
from pipelines.store.location import locate
from pipelines.store.masking import mask_urls
from pipelines.store.patience import DEATHS_ALONE
from vimaedit.engine.failures import Failure, describe, device_error, free_memory
from vimaedit.errors import VimaeditError, shown
from vimaedit.types import Editor, EditResult, Status

logger = logging.getLogger(__name__)

LOST_DEVICE = 17  # exit code of a process that can no longer use its GPU

Slots = list[Row | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A batch's slots (None: a hole), and all rows that are finished with it, those that were stopped before among them."""

    slots: Slots
    rows: list[Row]


class StoppedEarly(VimaeditError):
    """The run is hopeless; raised in an editing actor to end it."""


class EditActor:
    """Hosts one editor; called by Ray Data with the block of one unit. `ledger`: the handle of the run's `Ledger`."""

    def __init__(self, context: RunContext, report: Report | None = None, ledger: Any = None) -> None:
        # Before torch loads OpenMP: idle threads sleep instead of spinning, which would slow the stages that share the cores
        # (measured with four busy processes on two cores: 0.6 s a batch against 15 s).
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        start_worker(*context.log_names)
        self.context = context
        self.report = report
        self.ledger = ledger
        with nullcontext() if ledger is None else starting(ledger):
            self.editor = _load(context)
            self.measure = RidingMetrics(context) if context.job.riding else None

    def __call__(self, block: pa.Table) -> pa.Table:
        (unit_rows,) = from_block(block)
        with about(unit_rows.unit.id, unit_rows.file.path):
            self.edit_rows(unit_rows.unit, unit_rows.rows)
        return to_block(unit_rows)

    def edit_rows(self, unit: Unit, rows: Sequence[Row]) -> None:
        """Edit the requests of one unit in place.

        Raises: StoppedEarly where the run has become hopeless.
        """
        job = self.context.job
        keep_shape, targets = job.canvas.fit == "keep", job.targets_per_source
        cut = list(unit_batches(unit, rows, self.context.batch_size, keep_shape=keep_shape, targets_per_source=targets))
        suspects = self._enter(unit)
        # First of all: if there is a killer among them, it shall not cost the others' work once more.
        for batch in cut:
            if suspects and any(row is not None and request_key(unit, row) in suspects for row in batch.slots):
                self._edit_suspects(unit, batch.slots, suspects)
        num_finished = 0
        for batch in cut:
            slots = [row if row is not None and row.status is None else None for row in batch.slots]
            started = time.perf_counter()
            self._edit(unit, slots)
            num_edited = sum(row is not None for row in slots)
            outcomes = [row.outcome for row in batch.rows if not row.is_kept]
            observe_batch([status for status, _, _ in outcomes], time.perf_counter() - started, num_edited)
            if self.report is not None and outcomes:
                reason = self.report(unit.id, num_finished, outcomes)
                if reason is not None:
                    raise StoppedEarly(reason)
            num_finished += len(outcomes)
        for row in rows:
            row.request = None  # nothing later reads what only the editor does

    def _enter(self, unit: Unit) -> Suspects:
        """Ask for the unit's suspects; new ones are written to the output before anything is tried again."""
        if self.ledger is None:
            return {}
        suspects, has_new = ray.get(self.ledger.enter.remote(unit.id))
        if has_new:
            logger.warning("unit %s: a process died while it edited %d requests; they run alone now", unit.id, len(suspects))
            write_suspects(locate(self.context.job.output), unit.id, suspects, deaths_run(self.context))
        return dict(suspects)

    def _edit_suspects(self, unit: Unit, slots: Slots, suspects: Suspects) -> None:
        """Edit the suspects of a batch, each alone in its own slot, those first that have killed; killers are quarantined."""
        places = [place for place, row in enumerate(slots) if row is not None and request_key(unit, row) in suspects]
        for place in sorted(places, key=lambda place: -_deaths(unit, slots, place, suspects).alone):
            row, deaths = slots[place], _deaths(unit, slots, place, suspects)
            assert row is not None
            row.attempts += deaths.all
            if deaths.alone < DEATHS_ALONE:
                self._edit(unit, [row if other == place else None for other in range(len(slots))])
                continue
            text = f"record {shown(row.id)}: the editing process died {deaths.alone} times while this request ran alone"
            message = f"{text} ({deaths.cause or 'as an earlier run noted'})"
            row.stop(Status.QUARANTINED, "edit", "process_died", message)
            logger.error("%s", message, extra=fields("row_stopped", [row.log_name], stage="edit"))

    def _edit(self, unit: Unit, slots: Slots) -> None:
        """Edit a batch that the ledger knows of meanwhile."""
        rows = [row for row in slots if row is not None]
        requests = [request_key(unit, row) for row in rows]
        if not requests:
            return
        if self.ledger is None:
            edit_batch(self.editor, slots)
            self._measure(slots)
            return
        logger.info("batch begun", extra=fields("batch_begun", _names(rows), slots=len(slots)))
        started = time.perf_counter()
        ray.get(self.ledger.begin.remote(unit.id, requests, this_worker()))
        edit_batch(self.editor, slots, lost=lambda cause: self._leave(unit, cause))
        self._measure(slots)  # a reference picture that kills the process is a killer too
        ray.get(self.ledger.end.remote(unit.id))
        statuses = Counter(str(row.status) for row in rows)
        logger.info(
            "batch edited", extra=fields("batch_edited", _names(rows), statuses=statuses, seconds=time.perf_counter() - started)
        )

    def _measure(self, slots: Slots) -> None:
        if self.measure is not None:
            self.measure([row for row in slots if row is not None])

    def _leave(self, unit: Unit, cause: str) -> NoReturn:
        """End this process: only a new one can use the device again. Ray starts it."""
        logger.error("unit %s: the device is lost to this process, which ends: %s", unit.id, cause)
        ray.get(self.ledger.leave.remote(unit.id, mask_urls(cause)))
        os._exit(LOST_DEVICE)


def deaths_run(context: RunContext) -> str:
    """Name the work that deaths are counted for: other settings, and a request that is tried anew, begin at none."""
    return f"{context.config_digest}-{context.generation}"


def _load(context: RunContext) -> Editor:
    import torch

    torch.set_num_threads(context.threads)
    job = with_local_weights(context.job)
    if context.make_editor is not None:
        return context.make_editor(job)
    if job.parts.hosts_pipeline:
        from vimaedit.engine.hosted import load_hosted_editor

        return load_hosted_editor(job, job, batches=context.facts.batches)  # as the probe has settled it for all
    from vimaedit.engine.load import load_editor

    return load_editor(job, job)


def _names(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [row.log_name for row in rows]


def _deaths(unit: Unit, slots: Slots, place: int, suspects: Suspects) -> Deaths:
    row = slots[place]
    assert row is not None
    return suspects[request_key(unit, row)]


def unit_batches(
    unit: Unit, rows: Sequence[Row], batch_size: int, *, keep_shape: bool, targets_per_source: int = 1
) -> Iterator[Batch]:
    """Cut a unit into its batches; requests without a picture to edit and those beyond a limit leave holes.

    The shape of a batch follows from the plan, never from which of its requests are good. With several canvas shapes
    (`keep_shape`) the requests of each shape are grouped in input order; those without a canvas have no slot then and
    finish with the batch of the next request that has one. Where requests share a source, those of one record stand together and
    fill up with holes to a multiple of `targets_per_source`; a unit that a limit cuts may then end in a smaller batch.
    """
    if not keep_shape and targets_per_source == 1:
        places: Slots = [*rows, *[None] * (unit.count - len(rows))]
        yield from _cut(places, [[] if row is None else [row] for row in places], batch_size)
        return
    groups: dict[tuple[int, ...], tuple[Slots, list[list[Row]]]] = {}
    waiting: list[Row] = []
    for row in rows:
        waiting.append(row)
        if not keep_shape or row.picture is not None:
            shape = row.picture.image.shape if keep_shape and row.picture is not None else ()
            members, finished = groups.setdefault(shape, ([], []))
            if members and members[-1] is not None and members[-1].record != row.record:
                _fill_up(members, finished, targets_per_source)
            members.append(row)
            finished.append(waiting)
            waiting = []
    for members, finished in groups.values():
        _fill_up(members, finished, targets_per_source)
        yield from _cut(members, finished, batch_size)
    if waiting:
        yield Batch(slots=[], rows=waiting)


def _fill_up(members: Slots, finished: list[list[Row]], multiple: int) -> None:
    """Add holes until there is a multiple of so many places."""
    while len(members) % multiple:
        members.append(None)
        finished.append([])


def _cut(places: Slots, finished: Sequence[list[Row]], batch_size: int) -> Iterator[Batch]:
    """Cut places into batches; with each place the rows of `finished` at its position are finished."""
    for members, num_slots in batches(len(places), batch_size):
        slots: Slots = [places[position] for position in members]
        slots = [row if row is not None and row.status is None else None for row in slots]
        slots += [None] * (num_slots - len(slots))
        yield Batch(slots=slots, rows=[row for position in members for row in finished[position]])


def edit_batch(editor: Editor, slots: Slots, lost: Callable[[str], NoReturn] | None = None) -> None:
    """Edit one batch in place. An exception costs no neighbour: each request then runs alone, in its own slot.

    Without memory for it a batch is halved, down to single requests; what has run in a smaller batch says so. `lost` is called
    with the cause where the device is of no more use to this process.
    """
    _edit_slots(editor, slots, lost, is_reduced=False, is_rerun=False)


def _edit_slots(
    editor: Editor, slots: Slots, lost: Callable[[str], NoReturn] | None, *, is_reduced: bool, is_rerun: bool
) -> None:
    rows = [row for row in slots if row is not None]
    started = time.perf_counter()
    failure = _try(editor, slots)
    if failure is None:
        for row in rows if is_reduced else ():
            row.warnings.append(
                f"reduced_batch: edited in a batch of {len(slots)} for want of memory; pixels differ by rounding"
            )
        return
    cause = device_error()
    if cause is not None and lost is not None:
        lost(f"{failure.type}: {failure.text}; then {cause}")
    ids, text = ", ".join(shown(row.id) for row in rows), mask_urls(failure.text)
    if failure.out_of_memory and len(slots) > 1:
        logger.warning(
            "batch of %s: %s: %s; in halves now", ids, failure.type, text, extra=fields("batch_halved", _names(rows))
        )
        free_memory()
        half = 1 << ((len(slots) - 1).bit_length() - 1)
        for start in range(0, len(slots), half):
            part = slots[start : start + half]
            if any(row is not None for row in part):
                part += [None] * (half - len(part))
                _edit_slots(editor, part, lost, is_reduced=True, is_rerun=is_rerun)
    elif failure.out_of_memory or is_rerun:
        advice = "; no memory for this edit alone: try a smaller canvas.size, dtype=float16 or a larger device"
        for row in rows:
            message = f"record {shown(row.id)}: {failure.type}: {failure.text}{advice if failure.out_of_memory else ''}"
            row.take(
                EditResult(
                    id=row.id,
                    status=Status.FAILED,
                    error_stage="edit",
                    error_type=failure.type,
                    message=message,
                    seconds=time.perf_counter() - started,
                )
            )
            logger.warning("%s", mask_urls(message), extra=fields("row_stopped", [row.log_name], stage="edit"))
    else:
        logger.warning(
            "batch of %s: %s: %s; each runs alone now", ids, failure.type, text, extra=fields("batch_split", _names(rows))
        )
        for place, each in enumerate(slots):
            if each is not None:
                alone: Slots = [each if place == other else None for other in range(len(slots))]
                _edit_slots(editor, alone, lost, is_reduced=is_reduced, is_rerun=True)


def _try(editor: Editor, slots: Slots) -> Failure | None:
    try:
        _run(editor, slots)
    except Exception as error:
        return describe(error)
    return None


def _run(editor: Editor, slots: Slots) -> None:
    for row in slots:
        if row is not None:
            row.attempts += 1
    results = editor([None if row is None else row.request for row in slots])
    for row, result in zip(slots, results, strict=True):
        if row is not None:
            if result is None:
                raise RuntimeError("the editor gave no result for a request")
            row.take(result)
