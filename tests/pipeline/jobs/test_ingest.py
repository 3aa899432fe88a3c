"""`jobs.ingest`: both published forms become records that `jobs.edit` reads; what is broken is said and counted."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.ingest import main
from pipelines.ingest.ingest import IngestConfig, run_ingest
from pipelines.ingest.layouts import is_published
from pipelines.ingest.sources import PLUS_EXTRA
from pipelines.records.scan import scan_inputs
from pipelines.records.schema import BENCHMARK_FIELDS
from pipelines.records.types import IMAGE, input_features
from pipelines.store.location import locate
from tests.piebench_tree import draw, write_mapping, write_plus_plus, write_tree
from vimaedit.errors import ConfigError
from vimaedit.piebench.annotations import with_frame

COUNT = 20


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("piebench")
    write_tree(folder, COUNT)
    return folder


@pytest.fixture(scope="module")
def plus_plus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("piebench_pp")
    write_plus_plus(folder, COUNT)
    return folder


def rows_of(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(output / "records.parquet").to_pylist()
    return rows


@pytest.mark.parametrize("form", ["tree", "plus_plus"])
def test_a_benchmark_becomes_records(form: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source = request.getfixturevalue(form)
    assert main([f"input={source}", f"output={tmp_path}"]) == 0
    drawn = {each.id: each for each in draw(COUNT)}
    rows = rows_of(tmp_path)
    assert [row["id"] for row in rows] == sorted(drawn)
    for row in rows:
        each = drawn[row["id"]]
        assert row["image"]["bytes"] == each.jpeg and row["image"]["path"].endswith(f"{each.id}.jpg")
        assert (row["source_prompt"], row["target_prompt"]) == (each.edit.source_prompt, each.edit.target_prompt)
        assert row["blend_words"] == ([dict(zip(("source", "target"), each.words, strict=True))] if each.words else None)
        assert row["category"] == f"{each.category}_{each.edit.category}"
        assert row["instruction"] == (each.edit.instruction if form == "tree" else None)
        mask = np.array(Image.open(io.BytesIO(row["reference_mask"]["bytes"])))
        assert mask.dtype == np.uint8 and (mask == 255 * with_frame(each.mask)).all()
        assert form == "tree" or json.loads(row["blend_words"] and row["edit_action"] or "{}").keys() == set(
            (each.words or ())[:1]
        )
    schema = pq.read_schema(tmp_path / "records.parquet")
    assert schema.names == [*(field.name for field in BENCHMARK_FIELDS), *(PLUS_EXTRA if form == "plus_plus" else ())]
    assert input_features(schema)["reference_mask"] == {"_type": "Image"} and schema.field("image").type == IMAGE
    summary = json.loads((tmp_path / "ingest.json").read_text())
    assert summary["benchmark"] == ("PIE-Bench" if form == "tree" else "PIE-Bench++")
    assert (summary["entries"], summary["records"], summary["left_out"], summary["incomplete"]) == (COUNT, COUNT, [], [])
    assert sum(summary["categories"].values()) == sum(summary["blend_words"].values()) == COUNT


def test_records_are_an_input(tree: Path, tmp_path: Path) -> None:
    run_ingest(IngestConfig(input=str(tree), output=str(tmp_path)))
    inputs = scan_inputs(str(tmp_path), {})
    assert inputs.num_rows == COUNT and set(inputs.columns.passed) == {"category", "instruction", "reference_mask"}
    assert is_published(str(tree)) and is_published(str(tree / "mapping_file.json")) and not is_published(str(tmp_path))


def test_the_mapping_file_itself_may_be_named(tree: Path, tmp_path: Path) -> None:
    assert main([f"input={tree / 'mapping_file.json'}", f"output={tmp_path / 'out'}", "layout=piebench"]) == 0
    assert len(rows_of(tmp_path / "out")) == COUNT


def test_one_file_may_be_named(plus_plus: Path, tmp_path: Path) -> None:
    file = plus_plus / "0_random_140" / "V1-00000-of-00001.parquet"
    for number, source in enumerate((file, file.parent)):
        assert is_published(str(source)) and main([f"input={source}", f"output={tmp_path / str(number)}"]) == 0
        assert {row["category"] for row in rows_of(tmp_path / str(number))} == {"0_random"}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A tree with something wrong with most of its entries, each with another thing."""
    folder = tmp_path / "broken"
    mapping = write_tree(folder, COUNT)
    ids = list(mapping)
    pictures = folder / "annotation_images"
    (pictures / mapping[ids[0]]["image_path"]).unlink()
    (pictures / mapping[ids[1]]["image_path"]).write_bytes(b"no picture")
    cut = pictures / mapping[ids[2]]["image_path"]
    cut.write_bytes(cut.read_bytes()[:3000])
    mapping[ids[3]]["image_path"] = "../mapping_file.json"
    mapping[ids[4]].pop("editing_prompt")
    mapping[ids[5]]["original_prompt"] = "[]"
    mapping[ids[6]] = "no entry"  # type: ignore[assignment]
    mapping[ids[7]]["mask"] = [5]
    mapping[ids[8]]["editing_type_id"] = "x"
    mapping[ids[9]]["mask"] = [512 * 512 - 1, 7]
    mapping[ids[10]]["blended_word"] = "one two three"
    Image.new("RGB", (300, 400)).save(pictures / mapping[ids[11]]["image_path"])
    write_mapping(folder, mapping)
    # The same id once more: JSON readers keep the last one and say nothing.
    text = (folder / "mapping_file.json").read_text()
    twin = json.dumps({ids[12]: mapping[ids[12]]})[1:-1]
    (folder / "mapping_file.json").write_text(f"{text.rstrip()[:-1]}, {twin}}}")
    return folder


def test_broken_entries_are_said_and_counted(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main([f"input={broken}", f"output={output}"]) == 0
    ids = [each.id for each in sorted(draw(COUNT), key=lambda each: each.id)]
    rows = rows_of(output)
    assert [row["id"] for row in rows] == [*ids[7:], ids[12]]
    assert rows[0]["reference_mask"] is None and rows[1]["category"] is None and rows[2]["reference_mask"] is not None
    summary = json.loads((output / "ingest.json").read_text())
    assert summary["entries"] == COUNT + 1 == summary["records"] + len(summary["left_out"])
    said = {each["entry"]: each["problem"] for each in summary["left_out"]}
    assert list(said) == ids[:7]
    for label, start in zip(
        ids,
        [
            "image_path: got 'annotation_images/0_random_140/",
            "image: got 10 bytes: no picture format known here; allowed: a whole AVIF",
            "image: got 3000 bytes: ",
            "image_path: got '../mapping_file.json'; allowed: a path under annotation_images/",
            "editing_prompt: got nothing; allowed: text",
            "original_prompt: got '[]'; allowed: text that is not empty",
            "entry: got 'no entry'; allowed: an object",
        ],
        strict=False,
    ):
        assert said[label].startswith(start)
    assert [(each["entry"], each["problem"]) for each in summary["incomplete"]] == [
        (ids[7], "mask: got 1 numbers; allowed: pairs of start and length"),
        (ids[8], 'editing_type_id: got \'x\'; allowed: "0" to "9"'),
    ]
    assert summary["notes"] == {
        "more_than_two_blend_words": 1,
        "mask_clipped": 1,
        "picture_not_512": 1,
        "duplicate_id": 1,
    }
    assert sum(summary["categories"].values()) == COUNT - 6 and summary["categories"]["none"] == 1
    printed = capsys.readouterr().out
    assert printed.startswith(f"PIE-Bench: {COUNT - 6} records of {COUNT + 1} entries, 7 left out\n")
    assert f"left out {ids[0]} (mapping_file.json, entry 0): image_path: got" in printed
    assert "mask_clipped 1" in printed and printed.endswith(f"{output / 'records.parquet'}\n")


@pytest.mark.timeout(60)
def test_links_pipes_and_devices_of_a_tree_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    mapping = write_tree(folder, 4)
    secret = tmp_path / "secret.jpg"
    pictures = [folder / "annotation_images" / entry["image_path"] for entry in mapping.values()]
    shutil.copy(pictures[0], secret)
    for number, target in enumerate([secret, "/dev/zero"]):
        pictures[number].unlink()
        pictures[number].symlink_to(target)
    pictures[2].unlink()
    os.mkfifo(pictures[2])
    assert main([f"input={folder}", f"output={tmp_path / 'out'}", "max_rejected_fraction=1"]) == 0
    assert [row["id"] for row in rows_of(tmp_path / "out")] == list(mapping)[3:]
    summary = json.loads((tmp_path / "out" / "ingest.json").read_text())
    said = [each["problem"] for each in summary["left_out"]]
    assert all(text.startswith("image_path: got 'annotation_images/") and "; allowed: a " in text for text in said)
    assert len(said) == 3 and "a pipe or device" in said[2]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["mapping_file.json", "part.parquet"])
def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / name)
    assert main([f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]) == 2
    assert re.search(rf"jobs.ingest: input: got .*{name}.*a pipe", capsys.readouterr().err)


def test_with_too_many_left_out_the_job_says_so(broken: Path, tmp_path: Path) -> None:
    assert main([f"input={broken}", f"output={tmp_path / 'out'}", "max_rejected_fraction=0.3"]) == 3


def test_the_same_source_is_found_written(tree: Path, tmp_path: Path) -> None:
    config = IngestConfig(input=str(tree), output=str(tmp_path))
    first = run_ingest(config)
    written = (tmp_path / "records.parquet").stat().st_mtime_ns
    assert run_ingest(config) == first and (tmp_path / "records.parquet").stat().st_mtime_ns == written
    (tmp_path / "ingest.json").unlink()  # as after an interruption
    assert run_ingest(config) == first and (tmp_path / "ingest.json").exists()
    (tmp_path / "ingest.json").write_text('{"records": 7}')
    assert run_ingest(config) == first
    with pytest.raises(
        ConfigError, match="which holds records of another source or other limits; allowed: a new or empty folder"
    ):
        run_ingest(IngestConfig(input=str(tree), output=str(tmp_path), min_side_px=17))


def test_the_file_is_the_same_every_time(tree: Path, tmp_path: Path) -> None:
    for name in "ab":
        run_ingest(IngestConfig(input=str(tree), output=str(tmp_path / name)))
    assert (tmp_path / "a/records.parquet").read_bytes() == (tmp_path / "b/records.parquet").read_bytes()


def test_large_pictures_are_written_a_few_at_a_time(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.ingest.ingest.GROUP_BYTES", 100_000)
    run_ingest(IngestConfig(input=str(tree), output=str(tmp_path / "a")))
    metadata = pq.read_metadata(tmp_path / "a" / "records.parquet")
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert sum(groups) == COUNT and len(groups) > 2
    assert [row["id"] for row in rows_of(tmp_path / "a")] == sorted(each.id for each in draw(COUNT))


def test_another_file_is_not_touched(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"which holds mine.parquet; allowed: a new or empty folder \(nothing is deleted\)"):
        run_ingest(IngestConfig(input=str(tree), output=str(tmp_path)))


def test_objects_in_a_store(tree: Path, tmp_path: Path, bucket: str) -> None:
    store = locate(f"{bucket}/piebench")
    store.fs.put(str(tree), store.path, recursive=True)
    summary = run_ingest(IngestConfig(input=f"{bucket}/piebench", output=f"{bucket}/records"))
    assert summary.records == COUNT
    run_ingest(IngestConfig(input=str(tree), output=str(tmp_path)))
    with locate(f"{bucket}/records/records.parquet").fs.open(f"{bucket}/records/records.parquet") as stream:
        assert pq.read_table(stream).equals(pq.read_table(tmp_path / "records.parquet"))


def test_nothing_to_edit_is_refused_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    write_mapping(source, {"7": {"original_prompt": "a"}})
    assert main([f"input={source}", f"output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert "where none of 1 entries can be edited (7: image_path: got None; allowed: a path under" in error
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "which holds a list; allowed: an object of entries by id"),
        ("{", "which is no JSON (Expecting property name"),
    ],
)
def test_a_mapping_that_is_none(tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mapping_file.json").write_text(content)
    assert main([f"input={tmp_path}", f"output={tmp_path / 'out'}"]) == 2
    assert message in capsys.readouterr().err


def test_other_inputs_are_refused(tree: Path, plus_plus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in [
        (
            [f"input={tmp_path}"],
            "where nothing of that kind lies; allowed: a folder with mapping_file.json and annotation_images/, or a",
        ),
        ([f"input={tree}", "layout=piebench++"], "where nothing of that kind lies; allowed: a folder of Parquet files such as"),
        (
            [f"input={plus_plus}", "layout=piebench"],
            "where nothing of that kind lies; allowed: a folder with mapping_file.json",
        ),
        ([f"input={tree}", "layout=coco"], "layout: got 'coco'; allowed: auto, piebench, piebench++"),
    ]:
        assert main([f"output={tmp_path / 'out'}", *words]) == 2
        assert message in capsys.readouterr().err
    assert main([f"input={tree}", "output="]) == 2
    assert "output: got nothing; it is required: output=PATH_OR_URL" in capsys.readouterr().err
    pq.write_table(pa.table({"image": [b"x"], "source_prompt": ["a"]}), tmp_path / "some.parquet")
    assert main([f"input={tmp_path}", f"output={tmp_path / 'out'}"]) == 2
    assert "without the columns target_prompt, blended_words, mask; allowed: PIE-Bench++" in capsys.readouterr().err
    (tmp_path / "some.parquet").write_bytes(b"broken")
    assert main([f"input={tmp_path}", f"output={tmp_path / 'out'}"]) == 2
    assert "some.parquet, which cannot be read (" in capsys.readouterr().err


def test_a_value_that_cannot_be_read_costs_its_own_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in" / "0_random_140"
    source.mkdir(parents=True)
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "png")
    broken = pa.array([b"a \xff", b"a cat"], pa.binary()).view(pa.string())
    columns: dict[str, Any] = {
        **{"id": ["x", "y"], "image": pa.array([{"bytes": picture.getvalue(), "path": None}] * 2, IMAGE)},
        **{"source_prompt": broken, "target_prompt": ["a dog"] * 2, "blended_words": ["[" * 9999, "[]"], "mask": ["0 5"] * 2},
    }
    pq.write_table(pa.table(columns), source / "V1.parquet")
    assert main([f"input={source.parent}", f"output={tmp_path / 'out'}"]) == 0
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["y"]
    assert "left out x (0_random_140/V1.parquet#0): source_prompt: got a value of type string" in capsys.readouterr().out
    table = pa.table(columns)
    pq.write_table(table.append_column("mask", table.column("mask")), source / "V1.parquet")
    assert main([f"input={source.parent}", f"output={tmp_path / 'twice'}"]) == 2
    assert "got 2 columns of one name, 'mask', in " in capsys.readouterr().err
