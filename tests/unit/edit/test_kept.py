"""Rows that are done again come among those that stay, byte for byte."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.edit.blocks import UnitRows
from pipelines.edit.kept import with_kept_rows
from pipelines.edit.read import read_unit
from pipelines.edit.write import encode_unit
from pipelines.output.config import EditJobConfig
from pipelines.output.context import RunContext
from pipelines.output.parts import part_bytes, part_name, read_part
from pipelines.output.plan import Unit, make_plan
from pipelines.records.scan import InputFile, scan_inputs
from pipelines.records.schema import output_schema
from pipelines.store.location import locate, put_atomic
from tests.contexts import flip_byte, make_context
from vimaedit.models.files import ModelFacts
from vimaedit.types import EditResult, Status

FACTS = ModelFacts(name="tiny", family="sd1", canvas_size=16, granularity=8, clip_side=7, warning=None)


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (23, 19), (number, 2 * number, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of one unit of seven rows."""

    context: RunContext
    file: InputFile
    unit: Unit

    def read(self) -> UnitRows:
        return read_unit(self.context, [self.file], self.unit)

    def write(self, table: pa.Table) -> None:
        place = locate(self.context.job.output) / "data" / part_name(self.unit.id)
        put_atomic(place, part_bytes(self.context, self.unit.id, table))

    def stored(self) -> list[dict[str, Any]]:
        return list(pq.read_table(Path(self.context.job.output) / "data").to_pylist())


def edit(unit_rows: UnitRows, failing: tuple[int, ...], brightness: int) -> None:
    """Give every row that waits for it an edit, or a failure."""
    for row in unit_rows.rows:
        if row.status is None:
            row.attempts += 1
            result = EditResult(id=row.id, status=Status.OK, image=row.request.image // 2 + brightness, seconds=0.5)
            row.take(result)
            if row.input_row in failing:
                row.stop(Status.FAILED, "edit", "RuntimeError", "no luck")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    columns = {
        "image": [picture(number) if number != 2 else b"bad" for number in range(7)],
        "source_prompt": ["a cat"] * 7,
        "target_prompt": ["a dog"] * 7,
        "score": [number / 8 for number in range(7)],
    }
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "in" / "a.parquet")
    inputs = scan_inputs(str(tmp_path / "in"), {})
    (unit,) = make_plan(inputs, batch_size=2, requests_per_unit=8, settled={}).units
    context = make_context(
        EditJobConfig(input=inputs.root, output=str(tmp_path / "out")),
        FACTS,
        columns=inputs.columns,
        schema=output_schema(inputs.schema, inputs.columns),
        input_root=inputs.root,
    )
    return Run(context, inputs.files[0], unit)


def retried(run: Run, *statuses: str) -> Run:
    context = dataclasses.replace(run.context, generation=2, retry_statuses=statuses, version="later")
    return Run(context, run.file, dataclasses.replace(run.unit, generation=2))


def test_only_rows_of_these_statuses_are_read_to_be_edited_and_the_others_stay(run: Run) -> None:
    first = run.read()
    edit(first, failing=(1, 5), brightness=0)
    run.write(encode_unit(run.context, first))
    before = run.stored()
    assert [row["status"] for row in before] == ["ok", "failed", "rejected", "ok", "ok", "failed", "ok"]

    again = retried(run, "failed")
    second = again.read()
    assert [row.status for row in second.rows] == ["ok", None, "rejected", "ok", "ok", None, "ok"]
    edit(second, failing=(5,), brightness=100)  # what is kept would differ
    again.write(with_kept_rows(again.context, second))
    after = again.stored()
    assert [row["status"] for row in after] == ["ok", "ok", "rejected", "ok", "ok", "failed", "ok"]
    assert [after[number] for number in (0, 2, 3, 4, 6)] == [before[number] for number in (0, 2, 3, 4, 6)]
    assert (after[1]["version"], after[1]["score"], after[1]["seconds"]) == ("later", 1 / 8, 0.5)
    assert [row["input_row"] for row in after] == list(range(7))
    part = read_part(locate(again.context.job.output), again.unit.id, "p")
    assert part is not None and (part.generation, part.counts) == (2, {"ok": 5, "rejected": 1, "failed": 1})

    third = again.read()  # as Ray does where a node is lost after the part was written
    assert all(row.is_kept for row in third.rows)
    assert with_kept_rows(again.context, third).equals(with_kept_rows(again.context, third))
    assert [row.status for row in retried(run, "rejected").read().rows][2] == "rejected"  # of generation 2 already


def test_rejected_rows_are_done_again_where_that_is_asked_for(run: Run) -> None:
    first = run.read()
    edit(first, failing=(), brightness=0)
    run.write(encode_unit(run.context, first))
    second = retried(run, "rejected", "failed").read()
    assert [row.is_kept for row in second.rows] == [True, True, False, True, True, True, True]
    assert second.rows[2].status == Status.REJECTED  # the picture is as bad as before


def test_without_a_whole_part_every_row_is_done(run: Run) -> None:
    again = retried(run, "failed")
    assert not any(row.is_kept for row in again.read().rows)
    limited = Run(run.context, run.file, dataclasses.replace(run.unit, take=3))
    first = limited.read()
    edit(first, failing=(1,), brightness=0)
    limited.write(encode_unit(run.context, first))
    assert not any(row.is_kept for row in again.read().rows)


def test_a_part_with_a_broken_page_is_done_again_whole(run: Run) -> None:
    first = run.read()
    edit(first, failing=(1,), brightness=0)
    run.write(encode_unit(run.context, first))
    again = retried(run, "failed")
    assert sum(row.is_kept for row in again.read().rows) == 6
    flip_byte(Path(run.context.job.output) / "data" / part_name(run.unit.id))
    assert not any(row.is_kept for row in again.read().rows)


def test_a_part_that_was_replaced_meanwhile_is_noticed(run: Run) -> None:
    first = run.read()
    edit(first, failing=(1,), brightness=0)
    run.write(encode_unit(run.context, first))
    again = retried(run, "failed")
    second = again.read()
    edit(second, failing=(), brightness=0)
    other = run.read()
    edit(other, failing=(0,), brightness=0)
    run.write(encode_unit(run.context, other))
    with pytest.raises(
        RuntimeError, match="part-00000-000000000.parquet: was replaced while rows of it were done again; allowed:"
    ):
        with_kept_rows(again.context, second)


def test_the_row_of_an_unreadable_file_is_kept_too(run: Run) -> None:
    file = InputFile(path="broken.parquet", size=7, error="no Parquet")
    unit = Unit(file=1, start=0, first_row=-1, first_edit=0, count=1, take=1)
    broken = Run(run.context, file, unit)
    broken.write(encode_unit(run.context, broken.read()))
    (row,) = retried(broken, "failed").read().rows
    assert row.is_kept and row.status == Status.REJECTED
