"""The first look at a run: a finished one is known without Ray and without its model, an unfinished one never passes for finished."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.edit.begin import begin, find_finished, in_full
from pipelines.output.config import EditJobConfig
from pipelines.output.digest import config_digest
from pipelines.output.finish import write_run
from pipelines.output.parts import part_bytes, part_name
from pipelines.output.plan import StoredPlan, make_plan, store_plan
from pipelines.output.resume import plan_options
from pipelines.records.scan import READING, InputSet, scan_inputs
from pipelines.records.schema import output_schema
from pipelines.store.location import locate, put_atomic, write_success
from tests.contexts import make_context
from vimaedit.errors import ConfigError
from vimaedit.models.files import ModelFacts

FACTS = ModelFacts(name="tiny", family="sd1", canvas_size=16, granularity=8, clip_side=7, warning=None)
STATUSES = ("ok", "failed", "ok", "rejected")


def write_input(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    columns = {"image": [b"x"] * 7, "source_prompt": ["a"] * 7, "target_prompt": ["b"] * 7}
    pq.write_table(pa.table(columns), folder / name)


@pytest.fixture
def finished(tmp_path: Path) -> EditJobConfig:
    """The job of a finished run of seven rows in two units, two of them failed; its model is nowhere."""
    write_input(tmp_path / "in", "a.parquet")
    job = EditJobConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"), model=str(tmp_path / "gone"), image_root=".")
    store_finished(job, scan_inputs(job.input, {}))
    return job


def store_finished(job: EditJobConfig, inputs: InputSet) -> None:
    """Write the output of a finished run."""
    settled_job, output = dataclasses.replace(in_full(job), device="cpu", dtype="float32"), locate(job.output)
    settled: dict[str, Any] = {"config_digest": config_digest(settled_job), "model_digest": "m", "threads": 1}
    settled |= {"device": "cpu", "dtype": "float32", "requests_per_unit": 4, "compile": False, "reading": READING}
    plan = make_plan(inputs, batch_size=2, requests_per_unit=4, settled=settled, options=plan_options(settled_job))
    schema = output_schema(inputs.schema, inputs.columns)
    store_plan(output, StoredPlan(plan=plan, files=inputs.files, schema=schema), inputs)
    context = make_context(settled_job, FACTS, schema=schema, plan_digest=plan.digest)
    for unit in plan.units:
        table = pa.Table.from_pylist([{"status": status} for status in STATUSES[: unit.count]], schema)
        put_atomic(output / "data" / part_name(unit.id), part_bytes(context, unit.id, table))
    write_run(output, context, {"exit_code": 3, "counts": {"ok": 4, "failed": 2, "rejected": 1}, "rows": 7, "units": 2})
    write_success(output)


def test_a_plan_of_other_rules_of_reading_is_refused(finished: EditJobConfig) -> None:
    plan = Path(finished.output) / "plan" / "plan.json"
    stored = json.loads(plan.read_text())
    del stored["settled"]["reading"]
    plan.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="output: got .* which holds a run that another version has planned; allowed: that"):
        begin(finished)


def test_a_type_that_no_row_can_have_is_refused_unless_the_run_has_begun(finished: EditJobConfig, tmp_path: Path) -> None:
    columns = {"image": [b"x"] * 7, "source_prompt": [7] * 7, "target_prompt": ["b"] * 7, "given_mask": [1] * 7}
    (tmp_path / "wrong").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "wrong" / "a.parquet")
    job = dataclasses.replace(finished, input=str(tmp_path / "wrong"), output=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="input: got column 'source_prompt' as int64 in a.parquet; allowed: text"):
        begin(job)
    columns["source_prompt"] = ["a"] * 7
    pq.write_table(pa.table(columns), tmp_path / "wrong" / "a.parquet")
    assert begin(job).before is None
    with pytest.raises(ConfigError, match="input: got column 'given_mask' as int64 in a.parquet; allowed: binary, text"):
        begin(dataclasses.replace(job, grounding="given"))


def is_finished(job: EditJobConfig, **others: Any) -> bool:
    return find_finished(begin(dataclasses.replace(job, **others))) is not None


@contextmanager
def keeping(path: Path) -> Iterator[Path]:
    content = path.read_bytes()
    yield path
    path.write_bytes(content)


def test_what_else_lies_among_the_parts_is_told(finished: EditJobConfig) -> None:
    shutil.copy(Path(finished.input, "a.parquet"), Path(finished.output, "data", "mine.parquet"))
    summary = find_finished(begin(finished))
    assert summary is not None and summary.warnings[0].startswith("data/ holds 'mine.parquet', no part of this run: readers of")


def test_a_finished_run_says_what_it_came_to_and_changes_nothing(finished: EditJobConfig) -> None:
    files = {path: path.stat().st_mtime_ns for path in Path(finished.output).rglob("*")}
    summary = find_finished(begin(finished))
    assert summary is not None and summary.was_finished and summary.exit_code == 3
    assert (summary.rows, summary.edited, summary.units, summary.counts["failed"]) == (7, 0, 2, 2)
    assert summary.text().startswith("finished before, nothing to do: 7 rows: 4 ok, 1 rejected, 2 failed, 0 quarantined\n")
    assert {path: path.stat().st_mtime_ns for path in Path(finished.output).rglob("*")} == files
    assert is_finished(finished, limit=3) and is_finished(finished, actors=7, device="cpu", dtype="float32")


def test_what_there_is_to_do_is_not_finished(finished: EditJobConfig) -> None:
    assert not is_finished(finished, resume="retry-failed")
    assert is_finished(finished, resume="retry-failed", retry_statuses=["quarantined"])
    write_input(Path(finished.input), "b.parquet")
    assert not is_finished(finished, resume="extend")
    (Path(finished.input) / "b.parquet").unlink()
    assert is_finished(finished, resume="extend")
    part = next(Path(finished.output, "data").iterdir())
    content = part.read_bytes()
    part.unlink()
    assert not is_finished(finished)
    part.write_bytes(content)
    assert is_finished(finished)
    for damage in ("{", "{}", '{"rows": 7}'):  # it is written anew by the run that goes on
        with keeping(Path(finished.output, "run.json")) as path:
            path.write_text(damage)
            assert not is_finished(finished)
    for name in ("_SUCCESS", "run.json"):
        shutil.move(Path(finished.output, name), Path(finished.input).parent / name)
        assert not is_finished(finished)
        shutil.move(Path(finished.input).parent / name, Path(finished.output, name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 7}, "holds a run of other settings: steps=7, was 50"),
        ({"dtype": "float16"}, 'holds a run of other settings: dtype="float16", was "float32"'),
        ({"image_root": ".."}, "holds a run of other settings: image_root="),
        ({"metrics": ["clip"]}, r'holds a run of other settings: .*metrics=\["clip"\], was \[\]'),
        ({"resume": "never"}, "resume: got never, but .* holds a run's plan"),
    ],
)
def test_other_settings_are_refused_at_once(finished: EditJobConfig, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        begin(dataclasses.replace(finished, **options))


def test_other_input_is_refused_at_once(finished: EditJobConfig) -> None:
    write_input(Path(finished.input), "b.parquet")
    with pytest.raises(ConfigError, match="which is not what the plan in the output was made of: new b.parquet"):
        begin(finished)
