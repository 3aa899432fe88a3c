"""Every request gets exactly one row: good ones, bad ones of many kinds, lists of targets, limits."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.cluster.progress import ProgressState
from pipelines.edit.edit import plan_dry_run, run_edit
from pipelines.records.schema import OUTPUT_FIELDS
from tests.pipeline.conftest import MakeJob, MakePicture, write_records
from vimaedit.errors import ConfigError

pytestmark = pytest.mark.timeout(170)

PROMPTS = ("a red cat on the lawn", "a red dog on the lawn")
PICTURES = ("image", "edited_image", "edit_mask", "critical_mask")


def read_rows(output: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(output / "data").to_pylist())


def open_picture(value: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(value["bytes"]))


def bad_records(picture: bytes, make_picture: MakePicture) -> dict[str, dict[str, Any]]:
    """Twenty records that cannot be edited: name -> changes."""
    return {
        "truncated picture": {"image": picture[: len(picture) // 3]},
        "no picture at all": {"image": b"this is text"},
        "zero bytes": {"image": b""},
        "null picture": {"image": None},
        "one pixel": {"image": make_picture(1, size=(1, 1))},
        "narrow picture": {"image": make_picture(1, size=(211, 13))},
        "20000 px wide": {"image": make_picture(1, size=(20011, 11))},
        "null source": {"source_prompt": None},
        "empty source": {"source_prompt": ""},
        "blank source": {"source_prompt": " \t"},
        "null target": {"target_prompt": None},
        "empty target": {"target_prompt": ""},
        "negative seed": {"seed": -5},
        "word not in source": {"blend_words": [{"source": "horse", "target": "dog"}]},
        "word not in target": {"blend_words": [{"source": "cat", "target": "horse"}]},
        "pair without words": {"blend_words": [{"source": None, "target": None}]},
        "blank words": {"blend_words": [{"source": " ", "target": ""}]},
        "threshold out of range": {"overrides": {"thresholds": {"edit": 7.0}}},
        "window out of range": {"overrides": {"windows": {"self": -0.5}}},
        "guidance out of range": {"overrides": {"target_guidance": -3.0}},
    }


def unusual_records(make_picture: MakePicture) -> dict[str, dict[str, Any]]:
    """Readable pictures of unusual kinds: name -> changes."""
    rotated = Image.Exif()
    rotated[274] = 6
    deep = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 97 * 89, dtype=np.uint16).reshape(89, 97)).save(deep, "PNG")
    return {
        "grey": {"image": make_picture(2, mode="L")},
        "palette": {"image": make_picture(3, mode="P")},
        "alpha": {"image": make_picture(4, mode="RGBA")},
        "CMYK": {"image": make_picture(5, mode="CMYK", kind="JPEG")},
        "16 bit": {"image": deep.getvalue()},
        "rotated": {"image": make_picture(6, size=(173, 97), kind="JPEG", exif=rotated)},
        "no change": {"target_prompt": PROMPTS[0]},
    }


def test_100_records_with_20_bad_ones_give_100_rows(tmp_path: Path, make_job: MakeJob, make_picture: MakePicture) -> None:
    pictures = [make_picture(number) for number in range(5)]
    records: list[dict[str, Any]] = [
        {"id": f"good {number}", "image": pictures[number % 5], "source_prompt": PROMPTS[0], "target_prompt": PROMPTS[1]}
        for number in range(73)
    ]
    bad, unusual = bad_records(pictures[0], make_picture), unusual_records(make_picture)
    special = [{**records[0], "id": name, **changes} for name, changes in {**bad, **unusual}.items()]
    for number, record in enumerate(special):
        records.insert(3 + 3 * number, record)
    assert len(bad) == 20 and len(records) == 100
    words = pa.list_(pa.struct([("source", pa.string()), ("target", pa.string())]))
    overrides = pa.struct(
        [
            ("thresholds", pa.struct([("edit", pa.float64())])),
            ("windows", pa.struct([("self", pa.float64())])),
            ("target_guidance", pa.float64()),
        ]
    )
    schema = pa.schema(
        [("id", pa.string()), ("image", pa.binary()), ("source_prompt", pa.string()), ("target_prompt", pa.string())]
        + [("seed", pa.int64()), ("blend_words", words), ("overrides", overrides)]
    )
    write_records(tmp_path / "in" / "a.parquet", records[:71], schema, row_group_size=17)
    write_records(tmp_path / "in" / "b.parquet", records[71:], schema)
    states: list[ProgressState] = []
    summary = run_edit(make_job(actors=2, sheet=5), progress=states.append)
    assert summary.counts == {"ok": 80, "rejected": 20, "failed": 0, "quarantined": 0}
    assert (summary.exit_code, summary.rows, summary.stop_reason) == (0, 100, None)
    assert any("random" in warning for warning in summary.warnings)
    assert states[-1] == ProgressState(done=100, total=100, counts={"ok": 80, "rejected": 20})
    assert any(0 < state.done < 100 for state in states)  # moves while the run goes on

    rows = read_rows(tmp_path / "out")
    assert [row["id"] for row in sorted(rows, key=lambda row: (row["input_file"], row["input_row"]))] == [
        r["id"] for r in records
    ]
    assert len({(row["input_file"], row["input_row"], row["edit_index"]) for row in rows}) == 100
    for row in rows:
        if row["id"] in bad:
            assert row["status"] == "rejected"
            assert all(row[name] is None for name in ("edited_image", "edit_mask", "critical_mask", "metrics"))
            assert row["error_message"].startswith(f"record {row['id']!r}: ") and "; allowed: " in row["error_message"]
        else:
            assert (row["status"], row["error_message"], row["attempts"]) == ("ok", None, 1)
            assert open_picture(row["image"]).size == open_picture(row["edited_image"]).size == (128, 128)
    by_id = {row["id"]: row for row in rows}
    assert by_id["null picture"]["image"] is None and by_id["null picture"]["crop_box"] is None
    assert open_picture(by_id["negative seed"]["image"]).size == (128, 128)
    assert "20011x11" in by_id["20000 px wide"]["error_message"]
    assert "horse" in by_id["word not in source"]["error_message"]
    assert by_id["rotated"]["original_size"] == {"width": 97, "height": 173}
    assert any("no_change_found" in warning for warning in by_id["no change"]["warnings"])
    good = by_id["good 7"]
    assert good["blend_words_used"] == [{"source": "cat", "target": "dog"}]
    if good["grounded"]:
        assert open_picture(good["edit_mask"]).mode == "L"
        assert set(np.unique(np.asarray(open_picture(good["edit_mask"])))) <= {0, 255}
    assert good["metrics"]["changed_fraction"] > 0

    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > 4 * 256 and sheet.height > 5 * 256
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["counts"]["ok"] == 80 and run["config"]["steps"] == 1 and run["config"]["dtype"] == "float32"
    manifest = pq.read_table(tmp_path / "out" / "manifest.parquet")
    assert manifest.column_names == ["unit", "generation", "rows", "ok", "rejected", "failed", "quarantined"]
    assert sum(manifest.column("rows").to_pylist()) == 100
    assert (tmp_path / "out" / "_SUCCESS").exists()
    with pq.ParquetFile(sorted((tmp_path / "out" / "data").iterdir())[0]) as part:
        features = json.loads(part.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        group = part.metadata.row_group(0)
    assert list(features) == [field.name for field in OUTPUT_FIELDS]
    assert all(features[name] == {"_type": "Image"} for name in PICTURES)
    chunks = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
    assert chunks["edited_image.bytes"].compression == "UNCOMPRESSED" and chunks["source_prompt"].compression == "ZSTD"
    assert chunks["source_prompt"].has_offset_index


TARGETS: list[Any] = [
    ["a red dog on the lawn", "a red fox on the lawn", " "],
    [],
    ["a blue cat on the lawn"],
    None,
    ["a red cow on it"],
]


def write_lists(folder: Path, make_picture: MakePicture) -> None:
    records = [
        {
            "photo": {"bytes": make_picture(number), "path": None},
            "source_prompt": PROMPTS[0],
            "target_prompt": targets,
            "id": 7 if number < 2 else None,  # need not be unique
            "seed": 11 if number == 2 else None,
            "status": f"own {number}",
            "score": [number, 2],
            "category": "animals",
        }
        for number, targets in enumerate(TARGETS)
    ]
    write_records(folder / "deep" / "a.parquet", records)


def test_lists_of_targets_and_equal_bytes_with_one_and_two_actors(
    tmp_path: Path, make_job: MakeJob, make_picture: MakePicture
) -> None:
    write_lists(tmp_path / "in", make_picture)
    job = {"columns": {"image": "photo"}, "batch_size": 2, "model": "random-flux"}
    first = run_edit(make_job(**job, output=str(tmp_path / "one")))
    second = run_edit(make_job(**job, output=str(tmp_path / "two"), actors=2))
    assert first.exit_code == second.exit_code == 0 and first.counts == second.counts
    assert first.warnings[0].endswith("written under another: status as input_status")

    one, two = read_rows(tmp_path / "one"), read_rows(tmp_path / "two")
    assert [(row["input_row"], row["edit_index"]) for row in one] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (3, 0), (4, 0)]
    assert [row["status"] for row in one] == ["ok", "ok", "rejected", "rejected", "ok", "rejected", "ok"]
    assert [row["id"] for row in one] == ["7", "7", "7", "7", "deep/a.parquet#2", "deep/a.parquet#3", "deep/a.parquet#4"]
    assert [row["input_status"] for row in one] == ["own 0"] * 3 + ["own 1", "own 2", "own 3", "own 4"]
    assert {row["family"] for row in one} == {"flux"}
    assert one[6]["score"] == [4, 2] and one[6]["category"] == "animals"
    assert "got an empty list; allowed: at least one target prompt" in one[3]["error_message"]
    assert one[0]["seed"] == one[1]["seed"] != one[6]["seed"] and one[4]["seed"] == 11
    for left, right in zip(one, two, strict=True):
        for name in (*PICTURES, "blend_words_used", "metrics", "seed", "config_digest", "unit_id"):
            assert left[name] == right[name], name


def test_values_of_unusual_types_and_what_cannot_be_read_cost_their_own_rows(
    tmp_path: Path, make_job: MakeJob, make_picture: MakePicture
) -> None:
    sources = [PROMPTS[0].encode(), b"a \xff cat", PROMPTS[0].encode()]
    offsets = pa.array(np.cumsum([0, *map(len, sources)]), pa.int32()).buffers()[1]
    table = pa.table(
        {
            "image": pa.array([make_picture(number) for number in range(3)], pa.binary_view()),
            "source_prompt": pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"".join(sources))]),
            "target_prompt": pa.array([[PROMPTS[1], PROMPTS[1]], [PROMPTS[1]], [PROMPTS[1]]], pa.list_view(pa.string())),
            "note": pa.array(["m", "n", None], pa.string_view()),
            "sizes": pa.array([[("w", 7)], None, []], pa.map_(pa.string(), pa.int32())),
        }
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    summary = run_edit(make_job(batch_size=2, model="random-xl"))  # another family than the other tests'
    assert summary.counts == {"ok": 3, "rejected": 1, "failed": 0, "quarantined": 0}
    rows = read_rows(tmp_path / "out")
    assert [(row["input_row"], row["edit_index"], row["status"]) for row in rows] == [
        (0, 0, "ok"),
        (0, 1, "ok"),
        (1, 0, "rejected"),
        (2, 0, "ok"),
    ]
    assert "source_prompt: got a value of type string that cannot be read" in rows[2]["error_message"]
    assert {row["family"] for row in rows} == {"sdxl"}
    assert [row["note"] for row in rows] == ["m", "m", "n", None]
    assert [row["sizes"] for row in rows] == [[{"key": "w", "value": 7}]] * 2 + [None, []]


def test_an_output_in_the_input_is_refused(tmp_path: Path, make_job: MakeJob, make_picture: MakePicture) -> None:
    write_lists(tmp_path / "in", make_picture)
    with pytest.raises(ConfigError, match="output: got .*/in/out with input=.*/in: one would lie in the other"):
        run_edit(make_job(columns={"image": "photo"}, output=str(tmp_path / "in" / "out")))
    assert not (tmp_path / "in" / "out" / "plan").exists()


def test_a_dry_run_measures_and_writes_nothing(tmp_path: Path, make_job: MakeJob, make_picture: MakePicture) -> None:
    write_lists(tmp_path / "in", make_picture)
    report = plan_dry_run(make_job(columns={"image": "photo"}, batch_size=2, dry_run=True))
    assert (report.files, report.requests, report.batch_size, report.units) == (1, 7, 2, 4)
    assert report.rows_per_hour is not None and 0 < report.rows_per_hour < 1e6
    assert report.output_gb is not None and 7 * 1e4 < report.output_gb * 1e9 < 7 * 1e6
    assert not (tmp_path / "out").exists()


def test_a_hopeless_run_stops_early_with_exit_5(tmp_path: Path, make_job: MakeJob) -> None:
    records = [{"image": b"no picture", "source_prompt": PROMPTS[0], "target_prompt": PROMPTS[1]} for _ in range(307)]
    write_records(tmp_path / "in" / "a.parquet", records)
    summary = run_edit(make_job(batch_size=11))
    assert summary.exit_code == 5
    assert summary.stop_reason == "the first 200 rows were all rejected"
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert (tmp_path / "out" / "plan" / "plan.json").exists()


def test_an_input_without_rows_is_done_at_once(tmp_path: Path, make_job: MakeJob) -> None:
    schema = pa.schema([("image", pa.binary()), ("source_prompt", pa.string()), ("target_prompt", pa.string())])
    write_records(tmp_path / "in" / "a.parquet", [], schema)
    summary = run_edit(make_job(sheet=3))
    assert (summary.exit_code, summary.rows, summary.sheet) == (0, 0, None)
    assert (tmp_path / "out" / "_SUCCESS").exists()
