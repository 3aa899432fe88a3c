"""Scores as they are written: one row per request, and what they come to."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.score.config import MISSING, SCORE_SCHEMA, UNSCORED
from pipelines.score.pairs import Pair
from pipelines.store.location import Damaged, Location, exists, is_transient, put_json, read_json
from pipelines.store.masking import mask_urls
from pipelines.store.parquet import BROKEN_CONTENT, put_table, read_table
from pipelines.tables import Table
from vimaedit.metrics.aggregate import aggregate, compare_paired
from vimaedit.metrics.names import METRICS, Metric, columns_of
from vimaedit.types import Status

FOLDER = "scores"
NO_CATEGORY = "none"
STATUSES = (*(str(status) for status in Status), MISSING, UNSCORED)
KEY = ("input_file", "input_row", "edit_index")

Numbers = dict[str, Any]

SUMMARY_FIELDS = {  # of `scores/<name>.json`, that are read again
    **dict.fromkeys(("statuses", "absent", "overall", "categories"), dict),
    **dict.fromkeys(("records", "unmatched"), int),
    **{"warnings": list, "seconds": int | float, "compared": dict | None},
}
logger = logging.getLogger(__name__)


def score_row(name: str, pair: Pair) -> dict[str, Any]:
    """Return the row of a request before it is measured; one without a picture to measure is finished with it."""
    edited = pair.edited
    status = MISSING if edited is None else edited.status
    message = "there is no edited picture of this request" if edited is None else edited.message
    if pair.problem is not None and status == Status.OK:
        status, message = UNSCORED, f"record {pair.id!r}: {pair.problem}"
    return {
        "id": pair.id,
        "edit_index": pair.edit_index,
        "input_file": pair.file,
        "input_row": pair.row,
        "category": pair.category,
        "instruction": pair.instruction,
        "source_prompt": pair.source_prompt,
        "target_prompt": pair.target_prompt,
        "name": name,
        "status": status,
        "message": message,
        "edited_file": None if edited is None else edited.file,
        "edited_row": None if edited is None else edited.row,
        "grounded": None if edited is None else edited.grounded,
        "seconds": None if edited is None else edited.seconds,
        **dict.fromkeys(METRICS),
    }


def judge_absent(rows: Sequence[dict[str, Any]]) -> None:
    """On a benchmark of drawn scenes, count every edit without a picture as not right: else what fails would not count."""
    verdicts = columns_of(["scene"])
    if any(row[name] is not None for row in rows for name in verdicts):
        for row in rows:
            if row["status"] != Status.OK:
                row |= dict.fromkeys(verdicts, 0.0)


def write_scores(output: Location, name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Write the rows as `scores/<name>.parquet`; return them as a table."""
    table = pa.Table.from_pylist(list(rows), schema=SCORE_SCHEMA)
    put_table(output / FOLDER / f"{name}.parquet", table)
    return table


def read_scores(output: Location, name: str) -> pa.Table | None:
    """Read the rows of `scores/<name>.parquet`; None where there are none, or damaged ones, which are measured again."""
    place = output / FOLDER / f"{name}.parquet"
    try:
        return read_table(place).select(SCORE_SCHEMA.names).cast(SCORE_SCHEMA) if exists(place) else None
    except (*BROKEN_CONTENT, KeyError) as error:
        if is_transient(error):
            raise
        logger.warning("%s: damaged (%s)", mask_urls(place.url), error)
        return None


def write_summary(output: Location, name: str, summary: Numbers) -> None:
    """Write `scores/<name>.json`, which completes these scores. NaN never stands in it."""
    put_json(output / FOLDER / f"{name}.json", summary, allow_nan=False)


def read_summary(output: Location, name: str) -> Numbers | None:
    """Read `scores/<name>.json`; None where these scores are not complete, or damaged, and measured again."""
    try:
        return read_json(output / FOLDER / f"{name}.json", SUMMARY_FIELDS)
    except Damaged as error:
        logger.warning("%s", error)
        return None


def count_statuses(table: pa.Table) -> dict[str, int]:
    """Count the rows by status, every status named."""
    counts = Counter(table.column("status").to_pylist())
    return {status: counts.get(status, 0) for status in STATUSES}


def seconds_per_edit(table: pa.Table) -> float | None:
    """Return what an edit took on average; None where the rows do not say."""
    mean: float | None = pc.mean(table.column("seconds")).as_py()
    return mean


def overall(table: pa.Table) -> Numbers:
    """Aggregate every metric over all rows."""
    return {name: asdict(aggregate(table.column(name).to_pylist())) for name in METRICS}


def per_category(table: pa.Table) -> Numbers:
    """Aggregate every metric over each category, in the categories' order by name; records without one are one of their own."""
    names = [NO_CATEGORY if name is None else name for name in table.column("category").to_pylist()]
    positions: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        positions.setdefault(name, []).append(position)
    found = {}
    for name in sorted(positions):
        part = table.take(pa.array(positions[name]))
        found[name] = {"records": part.num_rows, "metrics": overall(part)}
    return found


def compare_tables(ours: pa.Table, theirs: pa.Table) -> Numbers:
    """Compare two scored runs of one benchmark, metric by metric, over the requests that both have."""
    other = {key: row for row, key in enumerate(zip(*(theirs.column(name).to_pylist() for name in KEY), strict=True))}
    keys = list(zip(*(ours.column(name).to_pylist() for name in KEY), strict=True))
    common = [(row, other[key]) for row, key in enumerate(keys) if key in other]
    found: Numbers = {}
    for name in METRICS:
        mine, its = ours.column(name).to_pylist(), theirs.column(name).to_pylist()
        difference = compare_paired([mine[a] for a, _ in common], [its[b] for _, b in common])
        found[name] = None if difference is None else asdict(difference)
    return found


def summary_table(name: str, numbers: Mapping[str, Any], records: int) -> Table:
    """Return the means as a table: every metric that has one, at the scale of published tables."""
    rows = []
    for metric_name, metric in METRICS.items():
        found = numbers[metric_name]
        if found["count"] + found["nan"] + found["infinite"] == 0:
            continue
        mean, low, high = ("-" if found[key] is None else metric.shown(found[key]) for key in ("mean", "low", "high"))
        left_out = ", ".join(f"{found[key]} {key}" for key in ("nan", "infinite", "missing") if found[key])
        rows.append((metric.title, metric.unit, mean, f"{low} to {high}", str(found["count"]), left_out))
    return Table(
        title=f"{name}: {records} requests",
        columns=("metric", "unit", "mean", "95 % interval", "values", "left out"),
        rows=tuple(rows),
    )


def comparison_table(name: str, compared: Mapping[str, Any]) -> Table:
    """Return the paired differences as a table: every metric that both runs have, at the scale of published tables."""
    rows = []
    for metric_name, metric in METRICS.items():
        found = compared["metrics"][metric_name]
        if found is None:
            continue
        value, low, high = (metric.shown(found[key], "+") for key in ("value", "low", "high"))
        rows.append((metric.title, metric.unit, value, f"{low} to {high}", str(found["pairs"]), verdict(metric, found)))
    return Table(
        title=f"{name} less {compared['against']}, request by request",
        columns=("metric", "unit", "difference", "95 % interval", "pairs", ""),
        rows=tuple(rows),
    )


def verdict(metric: Metric, difference: Mapping[str, Any]) -> str:
    """Say whether a difference is for the better; nothing where its interval holds zero, or neither direction is better."""
    if metric.higher_is_better is None or difference["low"] <= 0 <= difference["high"]:
        return ""
    return "better" if (difference["value"] > 0) == metric.higher_is_better else "worse"


def judge_table(facts: Mapping[str, Any]) -> Table:
    """Return what is to be known of the judge beside its scores."""
    rows = [(f"overall of drawn edits, {kind}", _shown(mean)) for kind, mean in facts["means"].items()]
    rows.append(("done liked better than undone or another", f"{_shown(facts['ranked'])} of {facts['compared']} pairs"))
    rows += [(f"edits without a score: {kind}", str(count)) for kind, count in facts["without_score"].items()]
    return Table(title=f"Judge {facts['judge']}, questions {facts['prompt_version']}", columns=("", "value"), rows=tuple(rows))


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
