"""WebDataset shards: what a sample is, and data sets with several configurations."""

from __future__ import annotations

import datetime
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.compact import main
from pipelines.output.compact import THIS_FOLDER
from pipelines.output.parts import open_result_writer, part_name
from pipelines.output.samples import write_samples
from pipelines.records.types import IMAGE, with_features
from pipelines.store.location import locate, put_json, write_success
from pipelines.synthesis.columns import DATA_FIELDS, PREFERENCE_FIELDS, SCORES
from tests.unit.output.test_compact import make_run


def coded(grey: int, kind: str = "png") -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (7, 5), (grey, grey, grey)).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": None}


def read_samples(path: Path) -> dict[str, dict[str, bytes]]:
    """Group members as loaders do: what stands before the first dot is the key, and a sample's members follow each other."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, name = member.name.partition(".")
            assert key not in samples or key == list(samples)[-1]
            assert name not in samples.setdefault(key, {})
            content = tar.extractfile(member)
            assert content is not None
            samples[key][name] = content.read()
    return samples


def make_set(folder: Path) -> Path:
    """Write a finished data set of three records, in all configurations."""
    shards = {"data/train": (2, 1), "data/validation": (1,), "inverted/train": (2, 1), "inverted/validation": (1,)}
    for split, counts in {**shards, "preferences/train": (1, 0)}.items():
        record = 0 if split.endswith("train") else 3
        for number, count in enumerate(counts):
            rows = []
            for _ in range(count):
                rows.append(_preference(record) if split.startswith("preferences") else _record(record, split))
                record += 1
            schema = with_features(list(PREFERENCE_FIELDS if split.startswith("preferences") else DATA_FIELDS))
            path = folder / f"{split}-{number:05d}-of-{len(counts):05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_result_writer(str(path), schema, ()) as writer:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    head = "---\ntask_categories:\n- image-to-image\nconfigs:\n- config_name: default\n  data_files:\n"
    (folder / "README.md").write_text(f"{head}  - split: train\n    path: data/train-*.parquet\n---\n# Edits\n{THIS_FOLDER}\n")
    (folder / "samples.png").write_bytes(coded(3)["bytes"])
    put_json(locate(str(folder)) / "run.json", {"digest": "d", "records": {"train": 3, "validation": 1}, "counts": {"kept": 4}})
    write_success(locate(str(folder)))
    return folder


def _record(number: int, split: str) -> dict[str, Any]:
    pictures = [coded(number), coded(50 + number, "webp")][:: -1 if split.startswith("inverted") else 1]
    scores = {name: 0.5 for name in SCORES} | {"background_psnr": float("inf"), "aesthetic": None}
    return {
        "original_image": pictures[0],
        "edited_image": pictures[1],
        "mask": coded(255) if number else None,
        "edit_prompt": "make it ö",
        "scores": scores,
        "pair_id": f"a/b.parquet#{number}#0",
        "candidate": 1,
    }


def _preference(number: int) -> dict[str, Any]:
    pictures = {"original_image": coded(number), "chosen": coded(50 + number, "webp"), "rejected": coded(9, "jpeg")}
    return {**pictures, "prompt": "p", "margin": 0.25, "pair_id": f"a/b.parquet#{number}#0", "chosen_candidate": 1}


def test_a_run_becomes_samples_of_the_edits_that_are_ok(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_run(tmp_path / "run")
    part = tmp_path / "run" / "data" / part_name("00002-000000000")
    table = pq.read_table(part)
    status = pa.array(["ok", "failed", "ok", "rejected", "ok"])
    pq.write_table(table.set_column(table.schema.get_field_index("status"), "status", status), part)
    manifest = pq.read_table(tmp_path / "run" / "manifest.parquet").to_pandas()
    manifest.loc[manifest.unit == "00002-000000000", "ok"] = 3
    manifest.loc[manifest.unit == "00001-000000000", "ok"] = 1
    pq.write_table(pa.Table.from_pandas(manifest), tmp_path / "run" / "manifest.parquet")

    words = [f"input={tmp_path / 'run'}", "format=webdataset"]
    assert main([*words, f"output={tmp_path / 'shards'}"]) == 0
    assert any("left out: 2 of 14 rows, whose edit is not ok" in text for text in caplog.messages)
    (path,) = (tmp_path / "shards" / "data").iterdir()
    assert path.name == "train-00000-of-00001.tar"
    samples = read_samples(path)
    assert len(samples) == 12
    rows = [json.loads(sample["json"]) for sample in samples.values()]
    assert sorted(row["id"] for row in rows) == sorted(f"r{number}" for number in range(14) if number not in (8, 10))
    sample, row = next(iter(samples.values())), rows[0]
    assert {name.split(".")[0] for name in sample} == {"source", "edited", "mask", "critical_mask", "json"}
    assert (row["status"], row["source_prompt"], row["target_prompt"]) == ("ok", "s", "t")
    assert set(row["metrics"]) > {"background_psnr", "mask_fraction"} and row["config_digest"]
    assert not {"image", "edited_image"} & set(row) and (row["edit_mask"], row["critical_mask"]) == (True, False)
    edited = next(data for name, data in sample.items() if name.startswith("edited."))
    assert Image.open(io.BytesIO(edited)).size == (17, 19)


def test_a_sample_is_the_same_every_time_and_holds_all_columns(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_pylist(
        [
            {
                **{"input_file": "a.b/c.parquet", "input_row": 7, "edit_index": 1, "status": "ok"},
                **{"image": {"bytes": None, "path": "p/q.png"}, "edited_image": coded(1, "jpeg"), "edit_mask": coded(255)},
                **{"mask": coded(3, "webp"), "x/y.z": b"any", "taken": datetime.date(2026, 11, 30), "hash": [b"\x00\xff"]},
                "metrics": {"background_psnr": float("inf"), "background_mse": 0.0},
            }
        ],
        schema=pa.schema(
            [
                *[("input_file", pa.string()), ("input_row", pa.int64()), ("edit_index", pa.int32()), ("status", pa.string())],
                *[("image", IMAGE), ("edited_image", IMAGE), ("edit_mask", IMAGE), ("mask", IMAGE), ("x/y.z", pa.binary())],
                *[("taken", pa.date32()), ("hash", pa.list_(pa.binary()))],
                ("metrics", pa.struct([("background_psnr", pa.float32()), ("background_mse", pa.float32())])),
            ]
        ),
    )
    for name in ("a.tar", "b.tar"):
        assert write_samples(str(tmp_path / name), [batch]) == 1
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    ((key, sample),) = read_samples(tmp_path / "a.tar").items()
    assert key == "e66336830c0d0955a89f"  # once written, it stays
    assert set(sample) == {"edited.jpg", "mask.png", "input_mask.webp", "x%2Fy.z.bin", "json"}
    assert sample["x%2Fy.z.bin"] == b"any"
    assert json.loads(sample["json"]) == {
        **{"input_file": "a.b/c.parquet", "input_row": 7, "edit_index": 1, "status": "ok", "image": "p/q.png"},
        **{
            "taken": "2026-11-30",
            "hash": ["AP8="],
            "edit_mask": True,
            "metrics": {"background_psnr": None, "background_mse": 0.0},
        },
    }


def test_a_data_set_keeps_its_folders_splits_and_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"input={make_set(tmp_path / 'set')}", f"output={tmp_path / 'shards'}"]
    assert main(words) == 2
    assert "a data set whose Parquet shards jobs.synthesize has written" in capsys.readouterr().err
    assert main([*words, "format=webdataset"]) == 0
    assert capsys.readouterr().out.startswith("9 rows in 5 shards, ")
    shards = {str(path.relative_to(tmp_path / "shards")): path for path in (tmp_path / "shards").rglob("*.tar")}
    names = ["data/train", "data/validation", "inverted/train", "inverted/validation", "preferences/train"]
    assert sorted(shards) == [f"{name}-00000-of-00001.tar" for name in names]  # small files share one, none is empty
    found: Mapping[str, dict[str, dict[str, bytes]]] = {name: read_samples(path) for name, path in shards.items()}
    data, inverted, preferences = (found[f"{name}/train-00000-of-00001.tar"] for name in ("data", "inverted", "preferences"))
    assert list(data) == list(inverted) and next(iter(preferences)) == next(iter(data))  # a record is known again
    key, *others = data
    assert data[key]["source.png"] == inverted[key]["edited.png"]
    assert all(set(data[each]) == {"source.png", "edited.webp", "mask.png", "json"} for each in data)
    mask = Image.open(io.BytesIO(data[key]["mask.png"]))  # of a record without one: all was free to change
    assert mask.size == (7, 5) and mask.getextrema() == (255, 255) and json.loads(data[key]["json"])["mask"] is False
    assert all(json.loads(data[other]["json"])["mask"] is True for other in others)
    assert set(preferences[key]) == {"source.png", "chosen.webp", "rejected.jpg", "json"}
    record = json.loads(data[key]["json"])
    assert record["edit_prompt"] == "make it ö" and record["scores"]["change"] == 0.5
    assert record["scores"]["background_psnr"] is None and record["scores"]["aesthetic"] is None
    card = (tmp_path / "shards" / "README.md").read_text()
    assert "    path: data/train-*.tar\n" in card and "parquet" not in card and "`<key>.json`" in card
    assert (tmp_path / "shards" / "samples.png").exists() and (tmp_path / "shards" / "_SUCCESS").exists()


@pytest.mark.parametrize("lost", ["data/train-00001-of-00002.parquet", "data/validation-00000-of-00001.parquet"])
def test_a_data_set_that_is_not_whole_is_refused(lost: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (make_set(tmp_path / "set") / lost).unlink()
    assert main([f"input={tmp_path / 'set'}", f"output={tmp_path / 'shards'}", "format=webdataset"]) == 2
    error = capsys.readouterr().err
    assert "not all shards of one data set" in error or "holds 0 records of validation, where 1 were counted" in error
    assert not (tmp_path / "shards").exists()


def test_values_that_python_cannot_hold_and_names_that_are_taken(tmp_path: Path) -> None:
    table = pa.table(
        {
            **{name: [value] for name, value in (("input_file", "a.parquet"), ("input_row", 0), ("edit_index", 0))},
            "edited_image": pa.array([coded(9)], IMAGE),
            "far": pa.array([10**14], pa.timestamp("s")),
            "day": pa.array([10**7], pa.date32()),
            "mars": pa.array([5], pa.timestamp("us", "Mars/Phobos")),
            "source": pa.array([b"A"]),
            "input_source": pa.array([b"B"]),
            "Edited": pa.array([b"C"]),
            "json": pa.array([b"D"]),
        }
    )
    assert write_samples(str(tmp_path / "a.tar"), table.to_batches()) == 1
    (sample,) = read_samples(tmp_path / "a.tar").values()
    record = json.loads(sample.pop("json"))
    assert (record["far"], record["day"], record["mars"]) == (10**14, 10**7, 5)
    assert sorted(sample) == ["edited.png", "input_Edited.bin", "input_json.bin", "input_source.bin", "source.bin"]
    assert {sample[name] for name in sample if name.endswith(".bin")} == {b"A", b"B", b"C", b"D"}


def test_nested_values_that_python_cannot_hold_are_written_all_the_same(tmp_path: Path) -> None:
    broken = pa.array([b"a\xff", b"b"], pa.binary()).view(pa.string())
    columns = {
        **{"input_file": pa.array(["a", "a"]), "input_row": pa.array([0, 1]), "edit_index": pa.array([0, 0])},
        **{
            "text": broken,
            "texts": pa.ListArray.from_arrays([0, 1, 2], broken),
            "inner": pa.StructArray.from_arrays([broken], ["x"]),
        },
        **{"words": broken.dictionary_encode(), "times": pa.array([[2**62], None], pa.list_(pa.timestamp("s")))},
        "twice": pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], ["x", "x"]),
    }
    assert write_samples(str(tmp_path / "a.tar"), [pa.record_batch(columns)]) == 2
    first, second = (json.loads(sample["json"]) for sample in read_samples(tmp_path / "a.tar").values())
    assert (first["text"], first["texts"], first["inner"], first["words"]) == (r"a\xff", [r"a\xff"], {"x": r"a\xff"}, r"a\xff")
    assert (second["text"], second["texts"], second["times"]) == ("b", ["b"], None) and first["times"] == [2**62]
    assert first["twice"] == [["x", 1], ["x", 3]]
