"""The editing run: input -> plan -> Ray Data (read and decode | edit | encode and write) -> finished output."""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy

from pipelines.cluster.counter import Report, report_to, reporting, start_counter
from pipelines.cluster.logs import fields, set_run
from pipelines.cluster.losses import add_losses, losses_to_json
from pipelines.cluster.place import Placement
from pipelines.cluster.progress import ProgressCallback, ProgressState
from pipelines.cluster.room import ClusterShrank, room_policies
from pipelines.cluster.session import own_error, set_engine
from pipelines.cluster.small import end_actor
from pipelines.edit.actor import EditActor, deaths_run
from pipelines.edit.begin import Begun, begin, find_finished
from pipelines.edit.deaths import explaining_starts, read_suspects, start_ledger
from pipelines.edit.prepare import Prepared, place_run, prepare
from pipelines.edit.read import UnitSource
from pipelines.edit.segment import segmented
from pipelines.edit.sheet import try_sheet
from pipelines.edit.sink import UnitSink
from pipelines.exits import EXIT_STOPPED
from pipelines.output.config import EditJobConfig
from pipelines.output.context import MakeEditor, RunContext
from pipelines.output.digest import RESULTS_VERSION
from pipelines.output.finish import count_statuses, judge, write_manifest, write_run
from pipelines.output.parts import Part, find_foreign, foreign_text, read_parts
from pipelines.output.plan import Plan, StoredPlan, Unit, load_plan, store_plan
from pipelines.output.resume import Work, find_work, raise_generation
from pipelines.output.summary import DryRunReport, RunSummary
from pipelines.store.location import locate, remove_unfinished, withdraw_success, write_success
from pipelines.store.lock import Lock, hold_lock
from pipelines.store.masking import mask_urls
from pipelines.store.patience import ROUNDS
from vimaedit.types import Status

logger = logging.getLogger(__name__)

UNKNOWN_ROW_SECONDS = 60.0  # taken for the no-progress limit where no rate was measured


def run_edit(
    job: EditJobConfig,
    progress: ProgressCallback | None = None,
    on_started: Callable[[], None] | None = None,
    make_editor: MakeEditor | None = None,
    begun: Begun | None = None,
) -> RunSummary:
    """Edit a data set, or go on with what the output holds.

    `on_started` is called right after Ray has started (the place to install signal handlers). `make_editor` makes another editor
    than the job's method on its model, to time the pipeline by; what it writes carries the job's digests all the same. `begun`: the
    first look at the job, where it was taken already; a run that is finished needs no Ray.

    Raises: ConfigError (exit 2) before any work; anything else is a bug or infrastructure (exit 1), LockLost where another
    driver has taken the output over.
    """
    started = time.monotonic()
    begun = begun or begin(job)
    if (finished := find_finished(begun)) is not None:
        return finished
    prepared = prepare(begun, on_started, measure_always=False, make_editor=make_editor)
    output = locate(job.output)
    with hold_lock(output) as lock:
        if _name(load_plan(output)) != _name(begun.before):  # another driver has been here meanwhile
            begun = begin(job)
            prepared = prepare(begun, None, measure_always=False, make_editor=make_editor)
        return find_finished(begun) or _run(prepared, lock, progress, started)


def _name(stored: StoredPlan | None) -> tuple[str, int] | None:
    return None if stored is None else (stored.plan.digest, stored.plan.revision)


def _run(prepared: Prepared, lock: Lock, progress: ProgressCallback | None, started: float) -> RunSummary:
    job, output = prepared.context.job, locate(prepared.context.job.output)
    parts = _stored_parts(prepared)
    plan = _next_plan(prepared, parts)
    if plan is not (prepared.before.plan if prepared.before else None):
        lock.check()
        withdraw_success(output)
        store_plan(output, dataclasses.replace(prepared.stored, plan=plan), prepared.inputs)
    context = dataclasses.replace(
        prepared.context, generation=plan.generation, retry_statuses=plan.retry_statuses, attempt=lock.name
    )
    set_run(plan.digest, lock.name)
    work = find_work(plan, parts, job.limit)
    summary = RunSummary(
        exit_code=EXIT_STOPPED,
        counts={},
        rows=0,
        edited=0,
        seconds=0.0,
        units=len(work.units),
        data=mask_urls((output / "data").url),
        run_json=None,
        sheet=None,
        stop_reason=None,
        warnings=prepared.warnings,
    )
    lock.check()
    withdraw_success(output)
    remove_unfinished(output / "data")
    if prepared.before is not None:
        num_done = len(work.units) - len(work.todo)
        progressed = fields("run_continued", units_done=num_done, units=len(work.units))
        logger.info("going on: %d of %d units are done", num_done, len(work.units), extra=progressed)
    edited = 0
    rounds = 0
    while work.todo and rounds < ROUNDS:
        state, reason = _edit(context, prepared, plan, work, lock, progress)
        edited += state.counts.get(Status.OK, 0)
        if isinstance(reason, ClusterShrank):
            logger.warning("%s", reason)
            gc.collect()  # lets go of what the old engine holds, whose actors are ended
            prepared = dataclasses.replace(prepared, placement=_place_again(context))
        elif reason is not None:
            seconds = time.monotonic() - started
            lock.facts = {**lock.facts, "stop_reason": reason}
            return dataclasses.replace(
                summary,
                counts=state.counts,
                losses=state.losses,
                rows=state.done,
                edited=edited,
                seconds=seconds,
                stop_reason=reason,
            )
        else:
            rounds += 1
        # What was there before may have been replaced since by a driver that was thought dead.
        work = find_work(plan, read_parts(output, (unit.id for unit in plan.units), plan.digest), job.limit)
    if work.todo:
        raise RuntimeError(
            f"{mask_urls((output / 'data').url)}: {len(work.todo)} of {len(work.units)} units, unit {work.todo[0].id} the first, are "
            f"not there or not the plan's after {ROUNDS} rounds; something else deletes or writes there"
        )
    return _finish(context, prepared, work, lock, dataclasses.replace(summary, edited=edited), started)


def _place_again(context: RunContext) -> Placement:
    """Decide anew, for what a cluster has left, where to edit; the threads of an actor are settled."""
    return place_run(dataclasses.replace(context.job, threads=context.threads))


def _stored_parts(prepared: Prepared) -> dict[str, Part]:
    """Read the footers of what an earlier attempt has left."""
    if prepared.before is None:
        return {}
    plan = prepared.before.plan
    return read_parts(locate(prepared.context.job.output), (unit.id for unit in plan.units), plan.digest)


def _next_plan(prepared: Prepared, parts: Mapping[str, Part]) -> Plan:
    """Return the plan to go by: the prepared one, with rows to be done again where that is asked for."""
    plan, job = prepared.stored.plan, prepared.context.job
    if job.resume != "retry-failed":
        return plan
    return raise_generation(plan, find_work(plan, parts, job.limit), job.retry_statuses)


def _finish(context: RunContext, prepared: Prepared, work: Work, lock: Lock, summary: RunSummary, started: float) -> RunSummary:
    """Say what the run came to, and mark the output complete last."""
    output = locate(context.job.output)
    parts = work.done_parts()
    counts = count_statuses(parts)
    lock.check()
    write_manifest(output, parts)
    sheet, warnings = try_sheet(output, work.units, context.job.sheet)
    foreign = find_foreign(output, (unit.id for unit in prepared.stored.plan.units))
    warnings = [*summary.warnings, *([foreign_text(foreign)] if foreign else []), *warnings]
    losses, seconds = add_losses(part.losses for part in parts), time.monotonic() - started
    code, reason = judge(context.job, counts)
    facts: dict[str, Any] = {
        "exit_code": code,
        "exit_reason": reason,
        "counts": counts,
        "losses": losses_to_json(losses),
        "rows": work.num_rows,
        "rows_edited": summary.edited,
        "units": len(work.units),
    }
    facts |= {"seconds": round(seconds, 3), "rows_per_second": summary.edited / seconds}
    facts |= {"versions": prepared.probe.versions, "results_version": RESULTS_VERSION}
    left_out = [dataclasses.asdict(each) for each in (*prepared.inputs.left_out, *prepared.probe.left_out)]
    write_run(output, context, {**facts, "warnings": warnings, "left_out": left_out})
    lock.check()
    write_success(output)
    logger.info(
        "finished: %d rows, %d edited in this attempt", work.num_rows, summary.edited, extra=fields("run_finished", **facts)
    )
    return dataclasses.replace(
        summary,
        exit_code=code,
        exit_reason=reason,
        counts=counts,
        losses=losses,
        rows=work.num_rows,
        seconds=seconds,
        run_json=mask_urls((output / "run.json").url),
        sheet=sheet,
        warnings=tuple(warnings),
    )


def plan_dry_run(job: EditJobConfig, on_started: Callable[[], None] | None = None, begun: Begun | None = None) -> DryRunReport:
    """Plan a run, or what is left of the one in the output, and measure a first batch; writes nothing into the output.

    Raises: ConfigError as `run_edit`.
    """
    prepared = prepare(begun or begin(job), on_started, measure_always=True)
    parts = _stored_parts(prepared)
    plan = _next_plan(prepared, parts)
    work = find_work(plan, parts, job.limit)
    sample, requests = prepared.sample, sum(work.rows_to_do(plan).values())
    actors = min(prepared.placement.likely_actors, max(1, len(work.todo)))
    return DryRunReport(
        files=len(prepared.inputs.files),
        unreadable_files=sum(file.error is not None for file in prepared.inputs.files),
        requests=requests,
        units=len(work.todo),
        requests_per_unit=plan.settled["requests_per_unit"],
        batch_size=plan.batch_size,
        actors=actors,
        device=prepared.probe.device,
        dtype=prepared.probe.dtype,
        model_digest=prepared.probe.model_digest,
        config_digest=prepared.context.config_digest,
        rows_per_hour=None if sample is None else 3600 * actors / sample.row_seconds,
        output_gb=None if sample is None else requests * sample.row_bytes / 1e9,
        warnings=prepared.warnings,
    )


def _edit(
    context: RunContext, prepared: Prepared, plan: Plan, work: Work, lock: Lock, progress: ProgressCallback | None
) -> tuple[ProgressState, str | ClusterShrank | None]:
    """Edit all units that are to be done: what came of them in this attempt, and why the run was stopped early, or this pool.

    Raises: LockLost.
    """
    rows = work.rows_to_do(plan)
    logger.info("editing %d rows, once the model is loaded", sum(rows.values()))
    counter = start_counter(rows, context.job.stop_failed_fraction)
    counts = count_statuses(work.done_parts())
    known = {"limit": context.job.limit, "rows": work.num_rows, "counts_before": counts, "editing_since": time.time()}

    def tell(state: ProgressState) -> None:
        lock.facts = {
            **known,
            "rows_edited": state.counts.get(Status.OK, 0),
            "rows_to_edit": state.total,
            "counts": state.counts,
            "losses": losses_to_json(state.losses),
        }
        if progress is not None:
            progress(state)

    lock.on_lost = lambda: counter.stop.remote("another driver has taken this run over")
    try:
        with reporting(counter, tell):
            _execute(context, prepared, plan, work.todo, report_to(counter))
        return ray.get(counter.state.remote()), None
    except Exception as error:
        lock.check()
        shrank = own_error(error)
        if isinstance(shrank, ClusterShrank):
            # Without its traceback, whose frames keep the old engine and what it holds of units.
            return ray.get(counter.state.remote()), ClusterShrank(str(shrank))
        # Ray wraps the actor's exception in text; whether the rule stopped the run, the counter knows.
        reason = ray.get(counter.stop_reason.remote())
        if reason is None:
            raise
        return ray.get(counter.state.remote()), reason
    finally:
        lock.on_lost = None
        end_actor(counter)


def _execute(context: RunContext, prepared: Prepared, plan: Plan, units: Sequence[Unit], report: Report) -> None:
    placement, row_seconds = prepared.placement, plan.row_seconds or UNKNOWN_ROW_SECONDS
    # Fewer units need fewer actors, and less room.
    num_actors = None if placement.num_actors is None else min(placement.num_actors, len(units))
    unit_seconds = math.ceil(row_seconds * max(unit.take for unit in units))
    set_engine(unit_seconds=unit_seconds, policies=room_policies(placement, num_actors))
    if num_actors is None:
        pool = ActorPoolStrategy(min_size=1, max_size=len(units), max_tasks_in_flight_per_actor=2)
    else:
        pool = ActorPoolStrategy(size=num_actors, max_tasks_in_flight_per_actor=2)
    source = UnitSource(context, prepared.stored.files, units)
    suspects = read_suspects(locate(context.job.output), (unit.id for unit in units), deaths_run(context))
    ledger = start_ledger(suspects)
    read = ray.data.read_datasource(source, override_num_blocks=len(units))
    stage_ledger = start_ledger({}) if placement.stage_actors else None
    if stage_ledger is not None:
        read = segmented(read, context, placement, len(units), stage_ledger)
    # Ray Data starts an actor whose process died again, and its unit too, as often as it takes; the ledger knows when it is enough.
    edited = read.map_batches(
        EditActor,
        fn_constructor_args=(context, report, ledger),
        batch_size=1,  # a block of one row is one unit
        batch_format="pyarrow",
        compute=pool,
        num_cpus=placement.num_cpus,
        num_gpus=placement.num_gpus or None,
    )
    try:
        with explaining_starts(ledger), explaining_starts(stage_ledger) if stage_ledger else nullcontext():
            edited.write_datasink(UnitSink(context))
    finally:
        for each in (ledger, stage_ledger):
            if each is not None:
                end_actor(each)
