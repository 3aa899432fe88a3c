"""The first look at a run, which needs neither Ray nor a model: what is refused at once, and what is finished already."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

from pipelines.cluster.losses import losses_from_json
from pipelines.edit.sheet import try_sheet
from pipelines.output.config import EditJobConfig
from pipelines.output.finish import read_run
from pipelines.output.parts import find_foreign, foreign_text, read_parts
from pipelines.output.plan import StoredPlan, load_plan
from pipelines.output.resume import check_inputs, check_mode, check_options, find_work, raise_generation, settle
from pipelines.output.summary import RunSummary
from pipelines.records.scan import InputSet, scan_inputs
from pipelines.records.schema import output_schema
from pipelines.store.listing import refuse_output_in_input
from pipelines.store.location import Damaged, check_writable, is_complete, locate
from pipelines.store.masking import mask_urls
from vimaedit.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Begun:
    """A run that may begin, or go on. `job`: with what the stored plan `before` has settled, where there is one."""

    job: EditJobConfig
    inputs: InputSet
    before: StoredPlan | None
    warnings: tuple[str, ...]


def begin(job: EditJobConfig) -> Begun:
    """Look at output and input.

    Raises: ConfigError for what cannot be edited from there to there with these options.
    """
    output = locate(job.output)
    before = load_plan(output)
    check_mode(output, job.resume, before)
    if not job.dry_run:
        check_writable(output, "data", "plan", "state")
    refuse_output_in_input(output, job.input)
    inputs = scan_inputs(job.input, job.columns)
    warnings: list[str] = []
    if before is None:
        _refuse_impossible(job, inputs)
    else:
        check_inputs(before, inputs, extend=job.resume == "extend")
        job, warnings = settle(job, before.plan)
        check_options(before, in_full(job), output_schema(inputs.schema, inputs.columns, job.riding))
    return Begun(job=job, inputs=inputs, before=before, warnings=tuple(warnings))


def _refuse_impossible(job: EditJobConfig, inputs: InputSet) -> None:
    """Raise `ConfigError` where the type of a column says that no row can be edited."""
    for name, reason in inputs.impossible.items():
        if name != "given_mask" or job.grounding == "given":
            raise ConfigError(reason)


def in_full(job: EditJobConfig) -> EditJobConfig:
    """Name the job's places in full: a worker's current folder may be another."""
    root = None if job.image_root is None else locate(job.image_root).url
    return dataclasses.replace(job, output=locate(job.output).url, image_root=root)


def find_finished(begun: Begun) -> RunSummary | None:
    """Say of a finished run what it came to, and draw a sheet where one is asked for; None where there is something to do.

    Whether the model still has the weights that it was edited with is not asked: nothing is edited any more.
    """
    job, before, output = begun.job, begun.before, locate(begun.job.output)
    if before is None or len(begun.inputs.files) > len(before.files) or not is_complete(output):
        return None
    plan = before.plan
    work = find_work(plan, read_parts(output, (unit.id for unit in plan.units), plan.digest), job.limit)
    is_same = job.resume != "retry-failed" or raise_generation(plan, work, job.retry_statuses) is plan
    try:
        run = read_run(output) if is_same and not work.todo else None
    except Damaged as error:
        logger.warning("output: %s", error)  # the run goes on where it writes that object
        return None
    if run is None:
        return None
    sheet, warnings = try_sheet(output, work.units, job.sheet)
    if foreign := find_foreign(output, (unit.id for unit in plan.units)):
        warnings = [foreign_text(foreign), *warnings]
    return RunSummary(
        exit_code=run["exit_code"],
        exit_reason=run.get("exit_reason"),
        losses=losses_from_json(run.get("losses")),
        counts=run["counts"],
        rows=run["rows"],
        edited=0,
        seconds=0.0,
        units=len(work.units),
        data=mask_urls((output / "data").url),
        run_json=mask_urls((output / "run.json").url),
        sheet=sheet,
        stop_reason=None,
        warnings=(*(each.text() for each in begun.inputs.left_out), *begun.warnings, *warnings),
        was_finished=True,
    )
