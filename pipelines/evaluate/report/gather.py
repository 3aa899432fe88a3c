"""Gather what the report shows from an evaluation's output: scores, runs, pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray

from pipelines.cluster.session import get
from pipelines.evaluate.report.data import Board, MethodBoard, Result, Sample
from pipelines.evaluate.report.pictures import Key, RunRows, ShownRow, part_rows
from pipelines.ingest.ingest import IngestSummary
from pipelines.output.finish import read_run
from pipelines.output.parts import part_name, read_parts
from pipelines.output.plan import load_plan
from pipelines.score.table import read_scores, read_summary
from pipelines.store.location import Location
from vimaedit.metrics.names import METRICS

TASKS_IN_FLIGHT = 16
COMMON_WARNING = 0.9  # a warning of so large a share of the rows is the run's


def gather(
    output: Location, names: Sequence[str], *, benchmark: str, ingest: IngestSummary | None, gallery: int, px: int
) -> Board:
    """Gather the board of the methods `names`; the gallery takes the first `gallery` records, with thumbnails of `px`.

    Several Ray tasks make the thumbnails, each those of one object of a run.
    """
    samples: dict[Key, Sample] = {}
    notes: list[str] = []
    methods = []
    records = 0
    for name in names:
        table, scores, run = read_scores(output, name), read_summary(output, name), read_run(output / "runs" / name)
        assert table is not None and scores is not None and run is not None  # written just before
        records = max(records, scores["records"])
        wanted = frozenset(_keys(table.slice(0, gallery)))
        found = _read_run(output / "runs" / name, wanted, px, shared=name == names[0])
        notes += [f"{name}: {text}" for text in found.notes()]
        common = tuple(text for text, count in found.warnings.items() if count >= COMMON_WARNING * max(1, table.num_rows))
        for row in table.slice(0, gallery).to_pylist():
            key = (row["input_file"], row["input_row"], row["edit_index"])
            sample = samples.setdefault(
                key,
                Sample(
                    id=row["id"],
                    category=row["category"],
                    instruction=row["instruction"],
                    source_prompt=row["source_prompt"] or "",
                    target_prompt=row["target_prompt"] or "",
                ),
            )
            _add(sample, name, row, found.rows.get(key), common)
        methods.append(
            MethodBoard(
                name=name,
                scores=scores,
                run=run,
                warnings=dict(found.kinds),
                common_warnings=common,
                without_words=found.without_words,
                ungrounded=found.ungrounded,
            )
        )
    return Board(
        benchmark=benchmark,
        ingest=ingest,
        records=records,
        methods=tuple(methods),
        samples=tuple(samples.values()),
        notes=tuple(notes),
    )


def _add(sample: Sample, name: str, scored: dict[str, Any], row: ShownRow | None, common: Sequence[str]) -> None:
    pictures = row.pictures if row else {}
    for field_name in ("source", "reference", "target"):
        if getattr(sample, field_name) is None:
            setattr(sample, field_name, pictures.get(field_name))
    sample.results[name] = Result(
        status=scored["status"],
        message=scored["message"],
        warnings=tuple(text for text in row.warnings if text not in common) if row else (),
        metrics={metric: scored[metric] for metric in METRICS if scored[metric] is not None},
        mask=pictures.get("mask"),
        edited=pictures.get("edited"),
    )


def _keys(table: pa.Table) -> Iterator[Key]:
    columns = (table.column(name).to_pylist() for name in ("input_file", "input_row", "edit_index"))
    return zip(*columns, strict=True)


def _read_run(run: Location, wanted: frozenset[Key], px: int, *, shared: bool) -> RunRows:
    """Read a run's rows with several tasks side by side."""
    task = ray.remote(part_rows)
    stored = load_plan(run)
    assert stored is not None
    parts = read_parts(run, (unit.id for unit in stored.plan.units), stored.plan.digest)
    places = iter([run / "data" / part_name(unit) for unit in parts])
    reference = ray.put(wanted)
    running = [task.remote(place, px, reference, shared) for place in itertools.islice(places, TASKS_IN_FLIGHT)]
    whole = RunRows()
    while running:
        whole.add(get([running.pop(0)])[0])
        running += [task.remote(place, px, reference, shared) for place in itertools.islice(places, 1)]
    return whole
