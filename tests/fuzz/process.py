"""Generated input inside one process: planned, read, decoded, edited with one step, coded as output."""

from __future__ import annotations

import functools
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.edit.actor import EditActor
from pipelines.edit.blocks import from_block, to_block
from pipelines.edit.read import read_unit
from pipelines.edit.sink import part_bytes
from pipelines.edit.write import encode_unit
from pipelines.output.config import EditJobConfig
from pipelines.output.plan import count_requests, make_plan
from pipelines.records.scan import scan_inputs
from pipelines.records.schema import output_schema
from tests.contexts import make_context
from tests.fuzz.files import FILE_CLASSES, FileClass, good_table
from tests.fuzz.registry import RecordClass, file_of
from tests.fuzz.verdicts import complaints, rejected, shows_canary
from tests.fuzz.world import World
from vimaedit.config import Canvas
from vimaedit.models.files import ModelFacts, model_facts, resolve_model
from vimaedit.types import Status

BATCH_SIZE = 16
FILE_RECORDS = 12  # so that a class has files of several column types
UNREADABLE = rejected("plan read record decode prepare", "input image source_prompt target_prompt")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "web": {"allow_http": True, "http_hosts": ["127.0.0.1"]},
    "masks": {"grounding": "given"},
}


@dataclass(kw_only=True)
class Tally:
    """What came of a run: rows per class and status, complaints about rows, and every text that could hold a secret."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return sum(sum(counts.values()) for counts in self.statuses.values())

    def judge(self, each: RecordClass, row: dict[str, Any]) -> None:
        self.statuses.setdefault(each.name, Counter())[row["status"]] += 1
        found = complaints(row, each.verdict)
        if shows_canary(row):
            found.append("shows what lies outside the allowed root")
        place = f"{row['input_file']}#{row['input_row']}"
        self.complaints += [f"{place}: {text}; {row['error_stage']}: {str(row['error_message'])[:300]!r}" for text in found]
        self.texts.append(repr({name: value for name, value in row.items() if name not in ("image", "edited_image")}))


def write_records(world: World, folder: Path, classes: Sequence[RecordClass], per_class: int) -> None:
    """Write the files of some classes; their names begin with the class."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in classes:
        for start in range(0, per_class, FILE_RECORDS):
            count = min(FILE_RECORDS, per_class - start)
            pq.write_table(file_of(each, world, count), folder / f"{each.name}-{start}.parquet")


def class_name(input_file: str) -> str:
    """Read the class of a record from the name of its file."""
    return re.sub(r"-\d+\.parquet$", "", Path(input_file).name)


@functools.cache
def load_actor(group: str) -> EditActor:
    """Load the built-in random model with the options of a group of classes, on the smallest canvas."""
    job = EditJobConfig(
        input="in",
        output="out",
        model="random",
        steps=1,
        device="cpu",
        dtype="float32",
        canvas=Canvas(size=64),
        **OPTIONS[group],
    )
    facts = model_facts(resolve_model(job, image_guidance=True))
    return EditActor(make_context(job, facts, batch_size=BATCH_SIZE))


def run_group(world: World, group: str, classes: Sequence[RecordClass], per_class: int, tally: Tally) -> None:
    """Run the records of one group of classes and judge every row."""
    folder = world.root / group
    write_records(world, folder, classes, per_class)
    known = {each.name: each for each in classes}
    inputs = scan_inputs(str(folder), {})
    assert [file.error for file in inputs.files] == [None] * len(inputs.files)
    actor = load_actor("masks" if group == "masks" else "plain")
    job = EditJobConfig(
        input=str(folder),
        output="out",
        model="random",
        image_root=str(world.root),
        max_pixels=4_000_000,
        steps=1,
        device="cpu",
        dtype="float32",
        canvas=Canvas(size=64),
        **OPTIONS[group],
    )
    context = make_context(
        job,
        actor.context.facts,
        columns=inputs.columns,
        schema=output_schema(inputs.schema, inputs.columns),
        input_root=inputs.root,
        batch_size=BATCH_SIZE,
    )
    actor.context = context
    plan = make_plan(inputs, batch_size=BATCH_SIZE, requests_per_unit=BATCH_SIZE, settled={})
    identities = set()
    for unit in plan.units:
        (unit_rows,) = from_block(to_block(read_unit(context, unit.files_of(inputs.files), unit)))
        actor.edit_rows(unit, unit_rows.rows)
        table = encode_unit(context, unit_rows)
        part = pq.read_table(io.BytesIO(part_bytes(context, unit.id, table)))
        for row in part.to_pylist():
            identities.add((row["input_file"], row["input_row"], row["edit_index"]))
            tally.judge(known[class_name(row["input_file"])], row)
    assert len(identities) == count_requests(inputs) == plan.num_requests


def read_files(world: World, per_class: int) -> list[str]:
    """Plan and read broken files, each beside a good one, and say what is wrong with what came of them."""
    found = []
    facts = ModelFacts(name="tiny", family="sd1", canvas_size=16, granularity=8, clip_side=7, warning=None)
    for each in FILE_CLASSES.values():
        for number in range(per_class):
            folder = world.root / f"{each.name}-{number}"
            folder.mkdir()
            pq.write_table(good_table(world), folder / "good.parquet")
            each.make(world, folder / "broken.parquet")
            inputs = scan_inputs(str(folder), {})
            job = EditJobConfig(input=str(folder), output="out")
            schema = output_schema(inputs.schema, inputs.columns)
            context = make_context(job, facts, columns=inputs.columns, schema=schema, input_root=inputs.root)
            plan = make_plan(inputs, batch_size=2, requests_per_unit=4, settled={})
            rows = []
            for unit in plan.units:
                unit_rows = read_unit(context, unit.files_of(inputs.files), unit)
                for row in unit_rows.rows:
                    if row.status is None:
                        row.stop(Status.FAILED, "edit", "none", "no editor here")
                rows += encode_unit(context, unit_rows).to_pylist()
            found += [f"{each.name} {number}: {text}" for text in _file_complaints(each, rows)]
    return found


def _file_complaints(each: FileClass, rows: Sequence[dict[str, Any]]) -> list[str]:
    good = [row for row in rows if row["input_file"] == "good.parquet"]
    found = broken_complaints(each, [row for row in rows if row["input_file"] != "good.parquet"])
    if [row["error_stage"] for row in good] != ["edit"] * 7:
        found.append(f"the good file's rows: {Counter(row['error_message'] for row in good)}")
    return found


def broken_complaints(each: FileClass, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Say what is wrong with the rows of a broken file; those that an editor took, or was meant to take, are beyond doubt."""
    found = []
    if each.rows is not None and len(rows) != each.rows:
        found.append(f"{len(rows)} rows, expected {each.rows}")
    if len({(row["input_row"], row["edit_index"]) for row in rows}) != len(rows):
        found.append("a request with two rows")
    for row in rows:
        if row["status"] != "ok" and row["error_stage"] != "edit":
            found += [f"{text}: {row['error_message']!r}" for text in complaints(row, UNREADABLE)]
        if shows_canary(row):
            found.append("shows what lies outside the allowed root")
    return found
