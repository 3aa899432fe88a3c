"""What `jobs.status` says of an output in every state that it may be in."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.status import main
from pipelines.output.config import EditJobConfig
from pipelines.output.finish import write_manifest, write_run
from pipelines.output.parts import part_bytes, part_name, read_parts
from pipelines.output.plan import StoredPlan, make_plan, store_plan
from pipelines.records.scan import scan_inputs
from pipelines.records.schema import output_schema
from pipelines.store.location import locate, put_atomic, write_success
from tests.contexts import flip_byte, make_context
from vimaedit.models.files import ModelFacts

FACTS = ModelFacts(name="tiny", family="sd1", canvas_size=16, granularity=8, clip_side=7, warning=None)
STATUSES = ("ok", "failed", "ok", "rejected")
ERRORS = {
    "failed": {"error_type": "OSError", "error_message": "record 'a': https://u:hush@h/a.png is away"},
    "rejected": {"error_type": "missing_image", "error_message": "record 'b': image: got 'b.png'\nforged"},
}


class Run:
    """A run of units of 4, 4 and 3 rows, in whatever state."""

    def __init__(self, folder: Path) -> None:
        columns = {"image": [b"x"] * 11, "source_prompt": ["a"] * 11, "target_prompt": ["b"] * 11}
        (folder / "in").mkdir()
        pq.write_table(pa.table(columns), folder / "in" / "a.parquet")
        self.inputs = scan_inputs(str(folder / "in"), {})
        self.output = locate(str(folder / "out"))
        plan = make_plan(self.inputs, batch_size=2, requests_per_unit=4, settled={})
        schema = output_schema(self.inputs.schema, self.inputs.columns)
        self.stored = StoredPlan(plan=plan, files=self.inputs.files, schema=schema)
        job = EditJobConfig(input="in", output=self.output.url)
        self.context = make_context(job, FACTS, schema=schema, plan_digest=plan.digest)

    def plan(self) -> None:
        store_plan(self.output, self.stored, self.inputs)

    def write_parts(self, *numbers: int) -> None:
        for unit in (self.stored.plan.units[number] for number in numbers):
            rows = [{"status": status, **ERRORS.get(status, {})} for status in STATUSES[: unit.count]]
            table = pa.Table.from_pylist(rows, self.context.schema)
            put_atomic(self.output / "data" / part_name(unit.id), part_bytes(self.context, unit.id, table))

    def lock(self, age_s: float, **others: Any) -> None:
        record = {"token": "t", "host": "gpu-7", "pid": 4711, "started_at": 0.0, "released": False, "renewals": 5}
        record |= {"renewed_at": time.time() - age_s, **others}
        put_atomic(self.output / "state" / "lock.json", json.dumps(record).encode())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def say(run: Run, capsys: pytest.CaptureFixture[str]) -> Any:
    def lines() -> list[str]:
        assert main([f"output={run.output.path}"]) == 0
        return capsys.readouterr().out.splitlines()

    return lines


def test_no_run_is_exit_2(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"output={run.output.path}"]) == 2
    assert capsys.readouterr().err == (
        f"jobs.status: output: got {run.output.path}, which holds no run; allowed: the output of jobs.edit\n"
    )
    assert main(["output="]) == 2
    assert "output: got nothing; it is required: output=PATH_OR_URL" in capsys.readouterr().err


def test_a_run_that_is_being_planned(run: Run, say: Any) -> None:
    run.lock(3.0)
    assert say() == [
        "state:  being planned",
        "lock:   held by process 4711 on gpu-7, which began 1970-01-01 00:00:00 UTC; renewed 3 s ago",
    ]


def test_a_running_one_with_its_limit_and_its_rate(run: Run, say: Any) -> None:
    run.plan()
    run.write_parts(0)
    run.lock(3.0, limit=7, rows_edited=6, editing_since=time.time() - 43.0)
    assert say() == [
        "state:  running",
        "rows:   4 of 7 (57.1%): 2 ok, 1 rejected, 1 failed, 0 quarantined",
        "lost:   1 failed: OSError, such as record 'a': https://***@h/a.png is away",
        "lost:   1 rejected: missing_image, such as record 'b': image: got 'b.png'\\nforged",
        "units:  1 of 2, generation 1",
        "edited: 6 rows in this attempt, written or in work",
        "rate:   0.15 rows/s",
        "lock:   held by process 4711 on gpu-7, which began 1970-01-01 00:00:00 UTC; renewed 3 s ago",
    ]


def test_one_whose_driver_is_gone(run: Run, say: Any) -> None:
    run.plan()
    run.write_parts(0, 2)
    assert say()[0] == "state:  not finished, nobody at work: the same command goes on"
    assert say()[-1] == "lock:   never taken"
    run.lock(4000.0)
    assert say()[:5] == [
        "state:  not finished; its driver has said nothing for more than 45 s: the same command goes on",
        "rows:   7 of 11 (63.6%): 4 ok, 1 rejected, 2 failed, 0 quarantined",
        "lost:   2 failed: OSError, such as record 'a': https://***@h/a.png is away",
        "lost:   1 rejected: missing_image, such as record 'b': image: got 'b.png'\\nforged",
        "units:  2 of 3, generation 1",
    ]
    run.lock(17.0, released=True, rows_edited=6)
    assert [say()[0], say()[-1]] == [
        "state:  not finished, nobody at work: the same command goes on",
        "lock:   released by process 4711 on gpu-7, which began 1970-01-01 00:00:00 UTC; renewed 17 s ago",
    ]
    put_atomic(run.output / "state" / "lock.json", b"{")
    assert say()[-1] == "lock:   being written"


def test_one_that_was_stopped_before_it_wrote_anything_says_why(run: Run, say: Any) -> None:
    run.plan()
    lost = {
        "missing_image": {
            "status": "rejected",
            "count": 200,
            "example": "record 'a': image: got 'a.png', there is no such file",
        }
    }
    reason = "the first 200 rows were all rejected"
    run.lock(17.0, released=True, rows_edited=0, losses=lost, stop_reason=reason)
    assert [say()[0], say()[2]] == [
        f"state:  not finished, nobody at work, stopped early: {reason}: the same command goes on",
        "lost:   200 rejected: missing_image, such as record 'a': image: got 'a.png', there is no such file",
    ]


def test_a_finished_one(run: Run, say: Any) -> None:
    run.plan()
    run.write_parts(0, 1, 2)
    parts = read_parts(run.output, (unit.id for unit in run.stored.plan.units), run.stored.plan.digest)
    write_manifest(run.output, list(parts.values()))
    counts = {"ok": 6, "rejected": 2, "failed": 3, "quarantined": 0}
    write_run(run.output, run.context, {"exit_code": 3, "rows": 11, "units": 3, "counts": counts, "rows_per_second": 2.5})
    write_success(run.output)
    run.lock(86400.0, released=True)
    lines = [
        "state:  finished (exit code 3)",
        "rows:   11 of 11 (100.0%): 6 ok, 2 rejected, 3 failed, 0 quarantined",
        "units:  3 of 3, generation 1",
        "rate:   2.50 rows/s",
        "lock:   released by process 4711 on gpu-7, which began 1970-01-01 00:00:00 UTC; renewed 86400 s ago",
    ]
    assert say() == lines
    facts = {"exit_code": 3, "rows": 11, "units": 3, "counts": counts, "rows_per_second": 2.5, "exit_reason": "2 of 3"}
    facts["losses"] = {"OSError": {"status": "failed", "count": 3, "example": "away"}}
    write_run(run.output, run.context, facts)
    assert say()[0] == "state:  finished (exit code 3: 2 of 3)" and say()[2] == "lost:   3 failed: OSError, such as away"
    (Path(run.output.path) / "run.json").write_text("{}")
    assert say()[:2] == ["state:  finished", lines[1]]
    damage = f"run:    got {run.output.path}/run.json, which is damaged (config is missing); allowed: a JSON object as it was written "
    assert f"{damage}(jobs.edit with the same options writes it anew)" in say()


def test_a_broken_part_and_a_foreign_file_are_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.plan()
    run.write_parts(0, 1)
    data = Path(run.output.path) / "data"
    (data / "notes.txt").write_text("mine")
    assert main([f"output={run.output.path}", "check=true"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-3:-1] == [
        "check:  2 parts read, 0 broken",
        "other:  data/ holds 'notes.txt', no part of this run: readers of the folder take it for results, so move it elsewhere",
    ]
    flip_byte(data / "part-00000-000000004.parquet", "status")
    assert main([f"output={run.output.path}"]) == 0
    assert "broken" not in capsys.readouterr().out
    assert main([f"output={run.output.path}", "check=true"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-4] == "check:  2 parts read, 1 broken"
    assert said[-3].startswith("broken: part-00000-000000004.parquet: ")
    assert said[-3].endswith("; remove it, then jobs.edit with the same options edits its unit again")


def test_a_part_that_has_gone_from_a_finished_run_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.plan()
    run.write_parts(0, 1, 2)
    write_run(run.output, run.context, {"exit_code": 0, "rows": 11, "units": 3, "counts": {"ok": 11}, "rows_per_second": 2.5})
    write_success(run.output)
    assert main([f"output={run.output.path}"]) == 0 and "broken" not in capsys.readouterr().out
    (Path(run.output.path) / "data" / "part-00000-000000004.parquet").unlink()
    assert main([f"output={run.output.path}"]) == 1
    assert "broken: part-00000-000000004.parquet: it is not there; " in capsys.readouterr().out
