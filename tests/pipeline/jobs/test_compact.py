"""A run in object storage: what its workers have logged, how `jobs.status` looks at it and `jobs.compact` rewrites it."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from jobs.compact import main as compact
from jobs.status import main as status
from pipelines.edit.edit import run_edit
from pipelines.output.config import EditJobConfig
from pipelines.output.plan import load_plan
from pipelines.records.types import is_feature
from pipelines.store.location import Location, list_files, locate, put_atomic, read_bytes
from tests.faults.runs import log_lines
from tests.pipeline.conftest import MakePicture

pytestmark = pytest.mark.timeout(600)

SECRET = "https://ann:hush@host/a.png?token=hush"


@pytest.fixture(scope="module")
def run(bucket: str, cluster: None, make_picture: MakePicture) -> Location:
    """The output of five records in three units, one of them broken; its workers log lines of JSON."""
    images = [make_picture(1), b"bad", make_picture(2), make_picture(3), make_picture(4)]
    columns = {"image": images, "source_prompt": ["a red cat"] * 5, "target_prompt": ["a red dog"] * 5}
    buffer = io.BytesIO()
    ids = ["r0", SECRET, "r2", "r3", "r4"]
    pq.write_table(pa.table({**columns, "id": ids, "score": pa.array(range(5), pa.int8())}), buffer)
    put_atomic(locate(f"{bucket}/small") / "a.parquet", buffer.getvalue())
    places = {"input": f"{bucket}/small", "output": f"{bucket}/small-out"}
    run_edit(EditJobConfig(**places, model="random", steps=1, actors=1, threads=1, batch_size=2, log_format="json"))
    return locate(places["output"])


def test_workers_log_what_they_do_with_run_unit_and_record_ids(run: Location) -> None:
    stored = load_plan(run)
    assert stored is not None
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    lines = [line for line in log_lines(logs) if line.get("run") == stored.plan.digest]
    assert Counter(line["event"] for line in lines) == {
        **{"unit_read": 3, "batch_begun": 3, "batch_edited": 3, "unit_written": 3}
    }
    assert {line["unit"] for line in lines} == {unit.id for unit in stored.plan.units}
    assert {line["file"] for line in lines} == {"a.parquet"} and len({line["attempt"] for line in lines}) == 1
    edited = [line for line in lines if line["event"] == "batch_edited"]
    found = sorted((record["row"], record["id"], record["edit"]) for line in edited for record in line["records"])
    assert found == [(number, f"r{number}", 0) for number in (0, 2, 3, 4)]
    assert sum(line["statuses"]["ok"] for line in edited) == 4
    assert "hush" not in json.dumps(lines)


def test_a_run_becomes_shards_that_say_what_their_columns_are(
    run: Location, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status([f"output={run.url}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[1], lines[3]] == [
        "state:  finished (exit code 0)",
        "rows:   5 of 5 (100.0%): 4 ok, 1 rejected, 0 failed, 0 quarantined",
        "units:  3 of 3, generation 1",
    ]
    assert lines[2].startswith("lost:   1 rejected: image_undecodable, such as record 'https://")
    assert "': image: got 3 bytes: " in lines[2] and "hush" not in lines[2]
    assert lines[-1].startswith("lock:   released by process ")

    assert compact([f"input={run.url}", f"output={bucket}/shards"]) == 0
    assert capsys.readouterr().out.startswith("5 rows in 1 shards, ")
    shards, kept = locate(f"{bucket}/shards"), ("state/compact.json", "state/lock.json")
    assert [name for name, _ in list_files(shards)] == ["data/train-00000-of-00001.parquet", "run.json", *kept]
    assert read_bytes(shards / "_SUCCESS") == b""
    table = pq.read_table(io.BytesIO(read_bytes(shards / "data" / "train-00000-of-00001.parquet")))
    parts = [read_bytes(run / "data" / name) for name, _ in list_files(run / "data")]
    assert table.to_pylist() == [row for part in parts for row in pq.read_table(io.BytesIO(part)).to_pylist()]
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert set(features) == set(table.column_names) and all(is_feature(feature) for feature in features.values())
    assert features["edited_image"] == {"_type": "Image"} and features["score"] == {"dtype": "int8", "_type": "Value"}
