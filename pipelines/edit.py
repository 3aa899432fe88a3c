"""The editing run: input -> plan -> Ray Data (read and decode | edit | encode and write) -> finished output."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray
import ray.data
from ray.data import ActorPoolStrategy

import vimaedit
from pipelines.config import EditJobConfig
from pipelines.context import RunContext
from pipelines.digest import RESULTS_VERSION, config_digest
from pipelines.editing import EditActor, deaths_run
from pipelines.finish import count_statuses, exit_code, read_parts, write_manifest, write_run, write_success
from pipelines.inputs import InputSet, scan_inputs
from pipelines.ledger import explaining_starts, start_ledger
from pipelines.listing import refuse_output_in_input
from pipelines.plan import Plan, Unit, count_requests, limit_units, make_plan, refuse_used_output, store_plan, unit_size
from pipelines.probe import Probe, Sample, await_worker, measure, probe
from pipelines.progress import ProgressCallback, Report, report_to, reporting, start_counter
from pipelines.resources import Placement, auto_batch_size, connect, look_at_cluster, place, set_engine
from pipelines.schema import output_schema
from pipelines.secrets import mask_urls
from pipelines.sheet import write_sheet
from pipelines.sink import UnitSink
from pipelines.source import UnitSource
from pipelines.storage import Location, check_writable, locate
from pipelines.suspects import read_suspects

logger = logging.getLogger(__name__)

LARGE_JOB_REQUESTS = 2000  # from here on the rate is measured before the plan is cut
UNKNOWN_ROW_SECONDS = 60.0  # taken for the no-progress limit where no rate was measured
CODED_BYTES_PER_PIXEL = 2.0  # a photograph as PNG, a little over what is usual
STOPPED_EARLY = 5


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run came to. `counts` by status; `rows` were done in `seconds`; paths are URLs."""

    exit_code: int
    counts: dict[str, int]
    rows: int
    seconds: float
    units: int
    data: str
    run_json: str | None
    sheet: str | None
    stop_reason: str | None
    warnings: tuple[str, ...]

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class DryRunReport:
    """What a run would be: sizes from the plan, rate and bytes from a measured first batch (None: nothing to measure)."""

    files: int
    unreadable_files: int
    requests: int
    units: int
    requests_per_unit: int
    batch_size: int
    actors: int
    device: str
    dtype: str
    model_digest: str
    config_digest: str
    rows_per_hour: float | None
    output_gb: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Prepared:
    inputs: InputSet
    placement: Placement
    probe: Probe
    context: RunContext
    plan: Plan
    units: tuple[Unit, ...]  # of the limit
    requests_per_unit: int
    sample: Sample | None
    warnings: tuple[str, ...]


def run_edit(
    job: EditJobConfig, progress: ProgressCallback | None = None, on_started: Callable[[], None] | None = None
) -> RunSummary:
    """Edit a data set. `on_started` is called right after Ray has started (the place to install signal handlers).

    Raises: ConfigError (exit 2) before any work; anything else is a bug or infrastructure (exit 1).
    """
    started = time.monotonic()
    output = locate(job.output)
    refuse_used_output(output, job.resume)
    check_writable(output)
    prepared = _prepare(job, on_started, measure_always=False)
    context, units = prepared.context, prepared.units
    store_plan(output, prepared.plan, prepared.inputs)
    total = sum(unit.take for unit in units)
    summary = RunSummary(
        exit_code=STOPPED_EARLY,
        counts={},
        rows=0,
        seconds=0.0,
        units=len(units),
        data=mask_urls((output / "data").url),
        run_json=None,
        sheet=None,
        stop_reason=None,
        warnings=prepared.warnings,
    )
    if units:
        counter = start_counter({unit.id: unit.take for unit in units}, job.stop_failed_fraction)
        try:
            with reporting(counter, progress):
                _execute(prepared, report_to(counter))
        except Exception:
            # Ray wraps the actor's exception in text; whether the rule stopped the run, the counter knows.
            reason = ray.get(counter.stop_reason.remote())
            if reason is None:
                raise
            state = ray.get(counter.state.remote())
            seconds = time.monotonic() - started
            return dataclasses.replace(summary, counts=state.counts, rows=state.done, seconds=seconds, stop_reason=reason)
    parts = read_parts(output, units, prepared.plan.digest)
    counts = count_statuses(parts)
    write_manifest(output, parts)
    sheet, warnings = _sheet(output, units, job.sheet) if units else (None, [])
    warnings = [*prepared.warnings, *warnings]
    seconds = time.monotonic() - started
    code = exit_code(job, counts)
    facts = {"exit_code": code, "counts": counts, "rows": total, "units": len(units), "seconds": round(seconds, 3)}
    facts |= {"rows_per_second": total / seconds, "versions": prepared.probe.versions, "results_version": RESULTS_VERSION}
    write_run(output, context, {**facts, "warnings": warnings})
    write_success(output)
    return dataclasses.replace(
        summary,
        exit_code=code,
        counts=counts,
        rows=total,
        seconds=seconds,
        run_json=mask_urls((output / "run.json").url),
        sheet=sheet,
        warnings=tuple(warnings),
    )


def _sheet(output: Location, units: Sequence[Unit], num_results: int) -> tuple[str | None, list[str]]:
    """Draw the sheet, where one is asked for: its URL, and what to warn of. The run is finished with or without it."""
    if not num_results:
        return None, []
    try:
        url, num_drawn = write_sheet(output, units, num_results)
    except Exception as error:
        logger.warning("no sheet", exc_info=True)
        return None, [f"sheet: {type(error).__name__}: {error}; there is none"]
    wanted = min(num_results, sum(unit.take for unit in units))
    return mask_urls(url), [f"sheet: {num_drawn} of {wanted} results have room on it"] if num_drawn < wanted else []


def plan_dry_run(job: EditJobConfig, on_started: Callable[[], None] | None = None) -> DryRunReport:
    """Plan a run and measure a first batch; writes nothing into the output.

    Raises: ConfigError as `run_edit`.
    """
    refuse_used_output(locate(job.output), job.resume)
    prepared = _prepare(job, on_started, measure_always=True)
    sample, requests = prepared.sample, sum(unit.take for unit in prepared.units)
    actors = min(prepared.placement.likely_actors, max(1, len(prepared.units)))
    return DryRunReport(
        files=len(prepared.inputs.files),
        unreadable_files=sum(file.error is not None for file in prepared.inputs.files),
        requests=requests,
        units=len(prepared.units),
        requests_per_unit=prepared.requests_per_unit,
        batch_size=prepared.plan.batch_size,
        actors=actors,
        device=prepared.probe.device,
        dtype=prepared.probe.dtype,
        model_digest=prepared.probe.model_digest,
        config_digest=prepared.context.config_digest,
        rows_per_hour=None if sample is None else 3600 * actors / sample.row_seconds,
        output_gb=None if sample is None else requests * sample.row_bytes / 1e9,
        warnings=prepared.warnings,
    )


def _prepare(job: EditJobConfig, on_started: Callable[[], None] | None, *, measure_always: bool) -> _Prepared:
    refuse_output_in_input(locate(job.output), job.input)
    inputs = scan_inputs(job.input, job.columns)
    num_requests = count_requests(inputs)
    connect(job)
    if on_started is not None:
        on_started()
    placement = place(job, look_at_cluster(job))
    if placement.warning:
        logger.warning("%s", placement.warning)  # now, not only at the end: it may be a reason to stop
    await_worker(placement)
    found = probe(job, placement)
    resolved = dataclasses.replace(
        job,
        device=found.device,
        dtype=found.dtype,
        output=locate(job.output).url,  # a worker's current folder may be another
        image_root=None if job.image_root is None else locate(job.image_root).url,
    )
    batch_size = job.batch_size if isinstance(job.batch_size, int) else auto_batch_size(found.device_gib)
    context = RunContext(
        job=resolved,
        facts=found.facts,
        columns=inputs.columns,
        schema=output_schema(inputs.schema, inputs.columns),
        input_root=inputs.root,
        batch_size=batch_size,
        threads=placement.threads,
        config_digest=config_digest(resolved),
        model_digest=found.model_digest,
        plan_digest="",
        version=vimaedit.__version__,
        generation=1,
    )
    sample = None
    if measure_always or is_large(num_requests, job.limit):
        sample = _measure_first(context, inputs, placement)
    per_unit = unit_size(
        num_requests=num_requests,
        batch_size=batch_size,
        actors=placement.likely_actors,
        row_bytes=sample.row_bytes if sample else _estimate_row_bytes(context, inputs),
        row_seconds=sample.row_seconds if sample else None,
        input_row_bytes=inputs.row_bytes,
    )
    settled = {
        "config_digest": context.config_digest,
        "model_digest": found.model_digest,
        "dtype": found.dtype,
        "device": found.device,
        "threads": placement.threads,
        "requests_per_unit": per_unit,
    }
    plan = make_plan(inputs, batch_size=batch_size, requests_per_unit=per_unit, settled=settled)
    return _Prepared(
        inputs=inputs,
        placement=placement,
        probe=found,
        context=dataclasses.replace(context, plan_digest=plan.digest),
        plan=plan,
        units=limit_units(plan.units, job.limit),
        requests_per_unit=per_unit,
        sample=sample,
        warnings=tuple(_run_warnings(inputs, placement, found)),
    )


def is_large(num_requests: int, limit: int | None) -> bool:
    """Whether a run is worth a measurement of its rate: by what it will edit, not by what there is."""
    return (num_requests if limit is None else min(num_requests, limit)) >= LARGE_JOB_REQUESTS


def _measure_first(context: RunContext, inputs: InputSet, placement: Placement) -> Sample | None:
    """Measure the first batch that can be edited among the first few of the input."""
    first = make_plan(inputs, batch_size=context.batch_size, requests_per_unit=context.batch_size, settled={})
    readable = (unit for unit in first.units if unit.first_row >= 0)
    for unit in itertools.islice(readable, 3):
        sample = measure(context, inputs.files[unit.file], unit, placement)
        if sample is not None:
            return sample
    return None


def _estimate_row_bytes(context: RunContext, inputs: InputSet) -> float:
    """Estimate the bytes of an output row from the model's canvas and the input's footers."""
    size = context.canvas.size
    rows = max(1, inputs.num_rows)
    picture = CODED_BYTES_PER_PIXEL * size * size
    if context.job.frame == "original":
        picture = max(picture, 2.0 * inputs.column_bytes.get(inputs.columns.edit["image"], 0) / rows)
    num_pictures = 2 if context.job.keep_source == "true" else 1
    passed = sum(inputs.column_bytes.get(source, 0) for source in inputs.columns.passed.values()) / rows
    return num_pictures * picture + passed


def _run_warnings(inputs: InputSet, placement: Placement, found: Probe) -> list[str]:
    warnings = [*inputs.warnings]
    warnings += [f"{file.path}: {file.error}; one rejected row" for file in inputs.files if file.error is not None]
    renamed = inputs.columns.renamed
    if renamed:
        pairs = ", ".join(f"{source} as {name}" for name, source in renamed.items())
        warnings.append(f"input columns with the names of output columns are written under another: {pairs}")
    if placement.warning:
        warnings.append(placement.warning)
    if found.facts.warning:
        warnings.append(found.facts.warning)
    return warnings


def _execute(prepared: _Prepared, report: Report) -> None:
    context, placement, units = prepared.context, prepared.placement, prepared.units
    row_seconds = prepared.sample.row_seconds if prepared.sample else UNKNOWN_ROW_SECONDS
    set_engine(unit_seconds=math.ceil(row_seconds * max(unit.take for unit in units)))
    if placement.num_actors is None:
        pool = ActorPoolStrategy(min_size=1, max_size=len(units), max_tasks_in_flight_per_actor=2)
    else:
        pool = ActorPoolStrategy(size=min(placement.num_actors, len(units)), max_tasks_in_flight_per_actor=1)
    source = UnitSource(context, prepared.inputs.files, units)
    suspects = read_suspects(locate(context.job.output), (unit.id for unit in units), deaths_run(context))
    ledger = start_ledger(suspects)
    # Ray Data starts an actor whose process died again, and its unit too, as often as it takes; the ledger knows when it is enough.
    edited = ray.data.read_datasource(source, override_num_blocks=len(units)).map_batches(
        EditActor,
        fn_constructor_args=(context, report, ledger),
        batch_size=1,  # a block of one row is one unit
        batch_format="pyarrow",
        compute=pool,
        num_cpus=placement.num_cpus,
        num_gpus=placement.num_gpus or None,
    )
    with explaining_starts(ledger):
        edited.write_datasink(UnitSink(context))
