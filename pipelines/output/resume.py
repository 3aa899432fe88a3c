"""Going on in an output that holds a run: whether that may be, and what is left to do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.output.config import EditJobConfig
from pipelines.output.context import RunContext
from pipelines.output.digest import RESULTS_VERSION, config_digest, digested_options
from pipelines.output.parts import Part
from pipelines.output.plan import Plan, StoredPlan, Unit, limit_units, retry_plan
from pipelines.records.scan import READING, InputFile, InputSet
from pipelines.store.listing import shown_inputs
from pipelines.store.location import Location, list_files
from pipelines.store.masking import cut, mask_urls, without_secrets
from vimaedit.errors import ConfigError

SHOWN_DIFFERENCES = 5
WHY = {"results_version": " (this version makes other pictures of some records, see the changelog)"}
SHOWN_CHARACTERS = 80


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What a run covers: its units in the plan's order, the parts that there are of them, and which units are to be done."""

    units: tuple[Unit, ...]
    parts: Mapping[str, Part]
    todo: tuple[Unit, ...]

    @property
    def num_rows(self) -> int:
        return sum(unit.take for unit in self.units)

    def done_parts(self) -> list[Part]:
        """Return the parts of the units that are done, in the plan's order."""
        left = {unit.id for unit in self.todo}
        return [self.parts[unit.id] for unit in self.units if unit.id not in left]

    def rows_to_do(self, plan: Plan) -> dict[str, int]:
        """Say how many rows are to be edited in each unit that is to be done: all, or those that are done again."""
        return {unit.id: _rows_to_do(plan, unit, self.parts.get(unit.id)) for unit in self.todo}


def check_mode(output: Location, resume: str, stored: StoredPlan | None) -> None:
    """Check that what is asked for goes with what the output holds. An output is empty where no plan was committed.

    Raises: ConfigError.
    """
    place = mask_urls(output.url)
    if stored is None:
        if resume in ("always", "retry-failed", "extend"):
            raise ConfigError(f"resume: got {resume}, but {place} holds no run to go on with; allowed: if-possible, never")
        if list_files(output / "data", ".parquet"):
            raise ConfigError(f"output: got {place}, which holds data but no plan of a run; allowed: a new or empty folder")
    elif resume == "never":
        raise ConfigError(
            f"resume: got never, but {place} holds a run's plan; allowed: if-possible, which goes on, or a new or empty output"
        )
    elif stored.plan.settled.get("reading") != READING:
        raise ConfigError(
            f"output: got {place}, which holds a run that another version has planned; allowed: that version, or another output "
            "(nothing is deleted)"
        )


def settle(job: EditJobConfig, plan: Plan) -> tuple[EditJobConfig, list[str]]:
    """Give a job what its stored plan has settled: whatever is left to `auto`; batch size, threads and compilation always.

    Returns the job, and what to warn of.
    """
    stands: dict[str, Any] = {"batch_size": plan.batch_size, "threads": plan.settled["threads"]}
    given = {name: getattr(job, name) for name in stands}
    warnings = [
        f"{name}: got {value}, but the plan in the output has {stands[name]}, which stands"
        for name, value in given.items()
        if value not in ("auto", stands[name])
    ]
    stands |= {name: plan.settled[name] for name in ("device", "dtype") if getattr(job, name) == "auto"}
    compiled = plan.settled["compile"]
    if job.compile and not compiled:
        warnings.append("compile: got true, but the plan in the output has false, which stands")
    stands["compile"] = compiled
    return dataclasses.replace(job, **stands), warnings


def check_inputs(stored: StoredPlan, inputs: InputSet, *, extend: bool) -> None:
    """Check that the input is the planned one: the same files under its root, of the same size and footer.

    Raises: ConfigError with the differences; new files are none with `extend`.
    """
    old, new = ({file.path: file for file in files} for files in (stored.files, inputs.files))
    changed = [
        f"changed {path} ({_change(old[path], new[path])})" for path in old if path in new and _change(old[path], new[path])
    ]
    missing = [f"missing {path}" for path in old if path not in new]
    appended = [] if extend else [f"new {path}" for path in new if path not in old]
    if differences := [*changed, *missing, *appended]:
        advice = "; resume=extend for new ones beside them" if appended and not changed and not missing else ""
        raise ConfigError(
            f"input: got {shown_inputs(inputs.inputs)}, which is not what the plan in the output was made of: {_some(differences)}; "
            f"allowed: the planned files{advice}; or another output"
        )


def check_options(stored: StoredPlan, job: EditJobConfig, schema: pa.Schema) -> None:
    """Check that a settled job and what it would write are those of the stored plan.

    Raises: ConfigError with the differences.
    """
    plan, found = stored.plan, []
    if config_digest(job) != plan.settled["config_digest"]:
        found = tell_differences(plan_options(job), plan.options) or ["options in what is not shown: credentials in URLs"]
    _refuse(job, found + _schema_differences(stored.schema, schema))


def check_weights(stored: StoredPlan, context: RunContext) -> None:
    """Check that the weights, of the model and of the metrics' networks, are those of the stored plan.

    Raises: ConfigError with the differences.
    """
    plan, found = stored.plan, []
    if context.model_digest != plan.settled["model_digest"]:
        found.append(
            f"model_digest {context.model_digest}, was {plan.settled['model_digest']}: model={mask_urls(context.job.model)} has other weights"
        )
    was_absent = plan.settled.get("absent_metrics", [])
    if list(context.absent_metrics) != was_absent:
        found.append(
            f"absent metrics {_shown(list(context.absent_metrics))}, were {_shown(was_absent)}: other networks are there"
        )
    _refuse(context.job, found)


def _refuse(job: EditJobConfig, differences: Sequence[str]) -> None:
    if differences:
        raise ConfigError(
            f"output: got {mask_urls(job.output)}, which holds a run of other settings: {_some(differences)}; allowed: those it was "
            "begun with, or another output (nothing is deleted)"
        )


def plan_options(job: EditJobConfig) -> dict[str, Any]:
    """Return the options that a plan stores so that differences can be told: plain values, without credentials."""
    return {"results_version": RESULTS_VERSION, **as_stored(digested_options(job))}


def as_stored(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as they are read back from an object: plain values, without credentials."""
    stored: dict[str, Any] = json.loads(json.dumps(without_secrets(options)))
    return stored


def tell_differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Tell the options, by name, that have another value now than then."""
    now, then = dict(_flat(now)), dict(_flat(then))
    return [
        f"{name}={_shown(now.get(name))}, was {_shown(then.get(name))}{WHY.get(name, '')}"
        for name in sorted(now.keys() | then.keys())
        if now.get(name) != then.get(name)
    ]


def find_work(plan: Plan, parts: Mapping[str, Part], limit: int | None) -> Work:
    """Say what a run covers and what of it is to be done.

    A part counts if it has the expected rows and is of the expected generation at least. What is there beyond a smaller limit
    stays and counts too: nothing is taken away.
    """
    takes = {unit.id: unit.take for unit in limit_units(plan.units, limit)}
    units = []
    for unit in plan.units:
        part = parts.get(unit.id)
        there = part.rows if part is not None and part.rows <= unit.count else 0
        take = max(takes.get(unit.id, 0), there)
        if take:
            units.append(unit if take == unit.take else dataclasses.replace(unit, take=take))
    return Work(units=tuple(units), parts=parts, todo=tuple(unit for unit in units if not _is_done(unit, parts.get(unit.id))))


def raise_generation(plan: Plan, work: Work, statuses: Sequence[str]) -> Plan:
    """Plan to do the rows of these statuses again; the same plan where there are none, or where just that is under way."""
    is_under_way = any(unit.generation > 1 for unit in work.todo)
    if is_under_way and set(statuses) <= set(plan.retry_statuses):
        return plan
    again = {part.unit for part in work.done_parts() if any(part.counts.get(status) for status in statuses)}
    if not again:
        return plan
    return retry_plan(plan, again, [*statuses, *(plan.retry_statuses if is_under_way else ())])


def _is_done(unit: Unit, part: Part | None) -> bool:
    return part is not None and part.rows == unit.take and part.generation >= unit.generation


def _rows_to_do(plan: Plan, unit: Unit, part: Part | None) -> int:
    if unit.generation == 1 or part is None or part.rows != unit.take:
        return unit.take
    return sum(part.counts.get(status, 0) for status in plan.retry_statuses)


def _change(old: InputFile, new: InputFile) -> str:
    if old.size != new.size:
        return f"{new.size} bytes, was {old.size}"
    return "" if old.footer_digest == new.footer_digest else "another footer"


def _schema_differences(stored: pa.Schema, schema: pa.Schema) -> list[str]:
    """Tell the columns that differ in name, type or Hugging Face feature. The order of files decides that of columns."""
    old, new = ({field.name: str(field.type) for field in each} for each in (stored, schema))
    found = [
        f"column {name} {new.get(name, 'missing')}, was {old.get(name, 'missing')}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    was, now = (json.loads(each.metadata[b"huggingface"]) for each in (stored, schema))
    return found if found or was == now else ["other Hugging Face features of passed-through columns"]


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    return cut(json.dumps(value, ensure_ascii=False), SHOWN_CHARACTERS)


def _some(differences: Sequence[str]) -> str:
    more = len(differences) - SHOWN_DIFFERENCES
    return ", ".join(differences[:SHOWN_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")
