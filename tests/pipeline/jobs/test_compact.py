"""A run in object storage, looked at with `jobs.status` and rewritten by `jobs.compact`."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.compact import main as compact
from jobs.status import main as status
from pipelines.edit.edit import run_edit
from pipelines.records.types import is_feature
from pipelines.store.location import list_files, locate, put_atomic, read_bytes
from tests.pipeline.conftest import MakeJob, MakePicture


@pytest.mark.timeout(600)
def test_a_run_becomes_shards_that_say_what_their_columns_are(
    bucket: str, make_job: MakeJob, make_picture: MakePicture, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [make_picture(1), b"bad", make_picture(2), make_picture(3), make_picture(4)]
    columns = {"image": images, "source_prompt": ["a red cat"] * 5, "target_prompt": ["a red dog"] * 5}
    buffer = io.BytesIO()
    pq.write_table(pa.table({**columns, "score": pa.array(range(5), pa.int8())}), buffer)
    put_atomic(locate(f"{bucket}/small") / "a.parquet", buffer.getvalue())
    run = locate(f"{bucket}/small-out")
    run_edit(make_job(input=f"{bucket}/small", output=run.url, batch_size=2))

    assert status([f"output={run.url}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[1], lines[3]] == [
        "state:  finished (exit code 0)",
        "rows:   5 of 5 (100.0%): 4 ok, 1 rejected, 0 failed, 0 quarantined",
        "units:  3 of 3, generation 1",
    ]
    assert lines[2].startswith("lost:   1 rejected: image_undecodable, such as record 'a.parquet#1': image: got 3 bytes: ")
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
