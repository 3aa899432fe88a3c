"""The log of a run's workers as lines of JSON."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import ray

from pipelines.edit.edit import run_edit
from pipelines.output.plan import load_plan
from pipelines.store.location import locate
from tests.faults.runs import log_lines
from tests.pipeline.conftest import MakeJob, MakePicture, write_records

pytestmark = pytest.mark.timeout(120)


def test_workers_log_what_they_do_with_run_unit_and_record_ids(
    tmp_path: Path, make_job: MakeJob, make_picture: MakePicture
) -> None:
    words = {"source_prompt": "a red cat on the lawn", "target_prompt": "a blue cat on the lawn"}
    records = [{"id": f"r{number}", "image": make_picture(number), **words} for number in range(3)]
    secret = "https://ann:hush@host/a.png?token=hush"
    write_records(tmp_path / "in" / "a.parquet", [*records, {"id": secret, "image": b"no picture", **words}])
    run_edit(make_job(batch_size=2, log_format="json", threads=1))
    stored = load_plan(locate(str(tmp_path / "out")))
    assert stored is not None
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    lines = [line for line in log_lines(logs) if line.get("run") == stored.plan.digest]
    assert Counter(line["event"] for line in lines) == {
        **{"unit_read": 2, "batch_begun": 2, "batch_edited": 2, "unit_written": 2}
    }
    assert {line["unit"] for line in lines} == {unit.id for unit in stored.plan.units}
    assert {line["file"] for line in lines} == {"a.parquet"} and len({line["attempt"] for line in lines}) == 1
    edited = [line for line in lines if line["event"] == "batch_edited"]
    found = sorted((record["row"], record["id"], record["edit"]) for line in edited for record in line["records"])
    assert found == [(number, f"r{number}", 0) for number in range(3)]
    assert sum(line["statuses"]["ok"] for line in edited) == 3
    assert "hush" not in json.dumps(lines)
