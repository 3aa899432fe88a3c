"""What stands before the first unit: a worker's answers, the settings, the plan - a new one or the stored one."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray

import vimaedit
from pipelines.cluster.place import Placement, auto_batch_size, place
from pipelines.cluster.session import connect, get, look_at_cluster
from pipelines.cluster.weights import with_absolute_names
from pipelines.cluster.workers import Probe, await_worker, on_worker, probe
from pipelines.edit.actor import EditActor
from pipelines.edit.begin import Begun, in_full
from pipelines.edit.blocks import UnitRows
from pipelines.edit.read import read_unit
from pipelines.edit.segment import SegmentActor
from pipelines.edit.write import encode_unit
from pipelines.output.config import EditJobConfig
from pipelines.output.context import MakeEditor, RunContext
from pipelines.output.digest import config_digest
from pipelines.output.parts import part_bytes
from pipelines.output.plan import Plan, StoredPlan, Unit, count_requests, extend_plan, make_plan, unit_size
from pipelines.output.resume import check_weights, plan_options
from pipelines.records.scan import READING, InputFile, InputSet
from pipelines.records.schema import OUTPUT_FIELDS, ColumnMap, output_schema
from pipelines.score.networks import MetricNetworks, absent_warnings, find_absent
from pipelines.store.masking import mask_urls
from pipelines.store.patience import SAMPLE_RETRIES

logger = logging.getLogger(__name__)

LARGE_JOB_REQUESTS = 2000  # from here on the rate is measured before the plan is cut
CODED_BYTES_PER_PIXEL = 2.0  # a photograph without loss, a little over what is usual


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A measured first batch: `rows` edited in `seconds` after a warm-up, and the bytes of their part."""

    rows: int
    seconds: float
    bytes: int

    @property
    def row_seconds(self) -> float:
        return self.seconds / self.rows

    @property
    def row_bytes(self) -> float:
        return self.bytes / self.rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A run that can begin. `before`: the plan that was stored already; `stored`: the one to go by, which may be new."""

    inputs: InputSet
    placement: Placement
    probe: Probe
    context: RunContext
    before: StoredPlan | None
    stored: StoredPlan
    sample: Sample | None
    warnings: tuple[str, ...]


def prepare(
    begun: Begun,
    on_started: Callable[[], None] | None,
    *,
    measure_always: bool,
    make_editor: MakeEditor | None = None,
) -> Prepared:
    """Join the cluster, ask a worker, and plan, or check that the stored plan is of the same weights.

    Raises: ConfigError.
    """
    job, inputs, before, warnings = begun.job, begun.inputs, begun.before, [*begun.warnings]
    connect(job)
    if on_started is not None:
        on_started()
    placement = place_run(job)
    warnings += [placement.warning] if placement.warning else []
    for warning in warnings:
        logger.warning("%s", warning)  # now, not only at the end: it may be a reason to stop
    await_worker(placement)
    found = probe(job, job, placement)
    resolved = dataclasses.replace(in_full(job), device=found.device, dtype=found.dtype)
    absent = find_absent(MetricNetworks.of(resolved, resolved.riding), placement)
    warnings += absent_warnings(absent)
    context = _context(resolved, inputs, placement, found, tuple(sorted(absent)), make_editor)
    sample = None
    if before is not None:
        check_weights(before, context)
        context = _in_stored_order(context, before)
        stored = extend_plan(before, inputs) if len(inputs.files) > len(before.files) else before
    if measure_always or (before is None and is_large(count_requests(inputs), job.limit)):
        sample = _measure_first(context, inputs, placement)
    if before is None:
        plan = _new_plan(context, inputs, placement, sample)
        stored = StoredPlan(plan=plan, files=inputs.files, schema=context.schema)
    return Prepared(
        inputs=inputs,
        placement=placement,
        probe=found,
        context=dataclasses.replace(context, plan_digest=stored.plan.digest),
        before=before,
        stored=stored,
        sample=sample,
        warnings=(*_input_warnings(inputs), *warnings, *_model_warnings(found)),
    )


def _context(
    resolved: EditJobConfig,
    inputs: InputSet,
    placement: Placement,
    found: Probe,
    absent: tuple[str, ...],
    make_editor: MakeEditor | None,
) -> RunContext:
    """Put together what the workers go by, of a job whose device and precision are settled."""
    return RunContext(
        job=with_absolute_names(resolved),  # the digest is that of the names as they were given
        facts=found.facts,
        columns=inputs.columns,
        schema=output_schema(inputs.schema, inputs.columns, resolved.riding),
        input_root=inputs.root,
        input_roots=inputs.roots,
        int96=inputs.int96,
        batch_size=resolved.batch_size
        if isinstance(resolved.batch_size, int)
        else auto_batch_size(
            found.device_gib,
            resolved.targets_per_source,
            canvas_px=resolved.canvas.size or found.facts.canvas_size,
            weights_gib=found.weights_gib,
        ),
        threads=placement.threads,
        config_digest=config_digest(resolved),
        model_digest=found.model_digest,
        plan_digest="",
        version=vimaedit.__version__,
        generation=1,
        make_editor=make_editor,
        absent_metrics=absent,
    )


def place_run(job: EditJobConfig) -> Placement:
    """Decide from what the cluster offers now where editing works, and a segmenter's stage beside it.

    Raises: ConfigError as `place`.
    """
    segmenter = job.segmenter if job.grounding == "segmenter" else None
    return place(job, look_at_cluster(job), compiled=job.compile, segmenter=segmenter)


def is_large(num_requests: int, limit: int | None) -> bool:
    """Whether a run is worth a measurement of its rate: by what it will edit, not by what there is."""
    return (num_requests if limit is None else min(num_requests, limit)) >= LARGE_JOB_REQUESTS


def _new_plan(context: RunContext, inputs: InputSet, placement: Placement, sample: Sample | None) -> Plan:
    per_unit = unit_size(
        num_requests=count_requests(inputs),
        batch_size=context.batch_size,
        actors=placement.likely_actors,
        row_bytes=sample.row_bytes if sample else _estimate_row_bytes(context, inputs),
        row_seconds=sample.row_seconds if sample else None,
        input_row_bytes=inputs.row_bytes,
    )
    settled = {
        "config_digest": context.config_digest,
        "model_digest": context.model_digest,
        "dtype": context.job.dtype,
        "device": context.job.device,
        "threads": placement.threads,
        "compile": context.job.compile,
        "requests_per_unit": per_unit,
        "absent_metrics": list(context.absent_metrics),
        "reading": READING,
    }
    return make_plan(
        inputs,
        batch_size=context.batch_size,
        requests_per_unit=per_unit,
        settled=settled,
        options=plan_options(context.job),
        row_seconds=sample.row_seconds if sample else None,
    )


def _in_stored_order(context: RunContext, stored: StoredPlan) -> RunContext:
    """Write passed-through columns in the order of the parts that are there; a new file may have changed that of the input."""
    passed = {name: context.columns.passed[name] for name in stored.schema.names[len(OUTPUT_FIELDS) :]}
    return dataclasses.replace(context, schema=stored.schema, columns=ColumnMap(edit=context.columns.edit, passed=passed))


def _measure_first(context: RunContext, inputs: InputSet, placement: Placement) -> Sample | None:
    """Measure the first batch that can be edited among the first few of the input."""
    first = make_plan(inputs, batch_size=context.batch_size, requests_per_unit=context.batch_size, settled={})
    readable = (unit for unit in first.units if unit.first_row >= 0)
    for unit in itertools.islice(readable, 3):
        sample = _measure(context, unit.files_of(inputs.files), unit, placement)
        if sample is not None:
            return sample
    return None


def _measure(context: RunContext, files: Sequence[InputFile], unit: Unit, placement: Placement) -> Sample | None:
    """Edit the unit's requests on a worker, write nothing, and time it; None where none of them can be edited.

    A request that kills its process is the run's to find; here it only makes the unit unfit for a measurement.
    """
    measured = on_worker(_edit_twice, placement, max_retries=SAMPLE_RETRIES).remote(context, files, unit)
    try:
        sample: Sample | None = get(measured)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        logger.warning("unit %s cannot be measured: %s", unit.id, mask_urls(str(error)).splitlines()[0])
        return None
    return sample


def _edit_twice(context: RunContext, files: Sequence[InputFile], unit: Unit) -> Sample | None:
    actor = EditActor(context)
    segmenter = SegmentActor(context) if context.job.grounding == "segmenter" else None
    read = read_unit(context, files, unit)
    if all(row.status is not None for row in read.rows):
        return None
    if segmenter is not None:
        segmenter.fill(unit, read.rows)
    actor.edit_rows(unit, read.rows)
    again: UnitRows = read_unit(context, files, unit)
    if segmenter is not None:  # in a run its stage works at the same time
        segmenter.fill(unit, again.rows)
    started = time.perf_counter()
    actor.edit_rows(unit, again.rows)
    seconds = time.perf_counter() - started
    return Sample(rows=len(again.rows), seconds=seconds, bytes=len(part_bytes(context, unit.id, encode_unit(context, again))))


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


def _model_warnings(found: Probe) -> list[str]:
    stated = [found.facts.warning] if found.facts.warning else []
    return [*stated, *(each.text() for each in found.left_out)]


def _input_warnings(inputs: InputSet) -> list[str]:
    warnings = [*inputs.warnings]
    warnings += [f"{file.path}: {file.error}; one rejected row" for file in inputs.files if file.error is not None]
    warnings += [each.text() for each in inputs.left_out]
    renamed = inputs.columns.renamed
    if renamed:
        pairs = ", ".join(f"{source} as {name}" for name, source in renamed.items())
        warnings.append(f"input columns with the names of output columns are written under another: {pairs}")
    return warnings
