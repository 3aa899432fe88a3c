"""Input and output in object storage, through a server that speaks the S3 protocol."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cluster.weights import local_copy
from pipelines.edit.edit import run_edit
from pipelines.output.finish import read_run
from pipelines.store.location import list_files, locate, put_atomic, read_bytes
from tests.pipeline.conftest import MakeJob, MakePicture
from vimaedit.errors import ConfigError

pytestmark = pytest.mark.timeout(120)


def test_records_come_from_and_go_to_object_storage(
    bucket: str, tmp_path: Path, make_job: MakeJob, make_picture: MakePicture
) -> None:
    images = [b"refs", make_picture(1), make_picture(2)]
    table = pa.table({"image": images, "source_prompt": ["a cat"] * 3, "target_prompt": ["a dog"] * 3})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    by_path = pa.table(
        {"image": ["pictures/a.png", "pictures/b.png"], "source_prompt": ["a cat"] * 2, "target_prompt": ["a dog"] * 2}
    )
    other = io.BytesIO()
    pq.write_table(by_path, other)
    root = locate(f"{bucket}/in")
    put_atomic(root / "a.parquet", buffer.getvalue())
    put_atomic(root / "b.parquet", buffer.getvalue()[:-29])
    put_atomic(root / "c.parquet", other.getvalue())
    put_atomic(root / "pictures" / "a.png", images[1])
    summary = run_edit(make_job(input=f"{bucket}/in", output=f"{bucket}/out", model="random-sd3", sheet=3))
    assert summary.counts == {"ok": 3, "rejected": 3, "failed": 0, "quarantined": 0}
    assert summary.warnings[0].startswith("b.parquet: the file does not end as a Parquet file does")
    output = locate(f"{bucket}/out")
    run = read_run(output)
    assert run is not None and run["left_out"][0]["examples"] == ["pictures/a.png"]
    assert {kind: loss["count"] for kind, loss in run["losses"].items()} == {
        "image_undecodable": 1,
        "unreadable_file": 1,
        "missing_image": 1,
    }
    assert "there is no such file" in run["losses"]["missing_image"]["example"] and summary.losses["missing_image"].count == 1
    assert [name for name, _ in list_files(output)] == [
        "data/part-00000-000000000.parquet",
        "data/part-00001-000000000.parquet",
        "data/part-00002-000000000.parquet",
        "manifest.parquet",
        "plan/files.parquet",
        "plan/plan.json",
        "plan/schema.arrow",
        "plan/units.parquet",
        "run.json",
        "sheet.png",
        "state/lock.json",
    ]
    assert read_bytes(output / "_SUCCESS") == b""
    parts = [
        pq.read_table(io.BytesIO(read_bytes(output / "data" / f"part-0000{index}-000000000.parquet"))).to_pylist()
        for index in range(3)
    ]
    assert [row["status"] for row in parts[0]] == ["rejected", "ok", "ok"]
    (truncated,) = parts[1]
    assert (truncated["input_row"], truncated["error_stage"], truncated["status"]) == (-1, "plan", "rejected")
    assert truncated["id"] == "b.parquet#-1" and truncated["image"] is None
    assert [row["error_type"] for row in parts[2]] == [None, "missing_image"]
    assert parts[2][0]["edited_image"] is not None

    again = run_edit(make_job(input=f"{bucket}/in", output=f"{bucket}/out", model="random-sd3"))
    assert again.was_finished and (again.rows, again.counts) == (6, summary.counts)


def test_weights_are_copied_once_for_each_state(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cluster.weights.CACHE", tmp_path / "cache")
    place = locate(f"{bucket}/model")
    put_atomic(place / "unet" / "w.safetensors", b"one")
    put_atomic(place / "config.json", b"{}")
    copy = Path(local_copy("model", f"{bucket}/model"))
    assert (copy / "unet" / "w.safetensors").read_bytes() == b"one" and (copy / "config.json").read_bytes() == b"{}"
    assert local_copy("model", f"{bucket}/model") == str(copy)
    put_atomic(place / "unet" / "w.safetensors", b"two")
    changed = Path(local_copy("model", f"{bucket}/model"))
    assert changed != copy and (changed / "unet" / "w.safetensors").read_bytes() == b"two"
    single = local_copy("ip_adapter", f"{bucket}/model/config.json")
    assert single.endswith("/config.json") and Path(single).read_bytes() == b"{}"
    with pytest.raises(
        ConfigError, match=r"clip: got 's3://pictures/none', where there is no file; allowed: the URL of a model file"
    ):
        local_copy("clip", f"{bucket}/none")
