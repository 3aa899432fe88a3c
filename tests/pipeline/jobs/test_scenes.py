"""`jobs.scenes` writes a benchmark that `jobs.edit` and scorers can read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.scenes import main
from pipelines.records.schema import INPUT_COLUMNS, map_columns
from pipelines.records.types import IMAGE, input_features
from vimaedit.scenes.reading.reader import attributes_of, layout_of, read_scene
from vimaedit.scenes.render import render_scene
from vimaedit.scenes.scenes import scene_from_json

COUNT = 103


def picture(struct: dict[str, Any]) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(struct["bytes"])))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    assert main([f"output={folder}", f"count={COUNT}", "size=64"]) == 0
    return folder / "records.parquet"


def test_the_file_states_its_schema(output: Path) -> None:
    file = pq.ParquetFile(output)
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [100, COUNT - 100]
    schema = file.schema_arrow
    columns = map_columns(schema.names, {})
    assert set(columns.edit) == {"id", "image", "source_prompt", "target_prompt", "blend_words"}
    assert set(schema.names) - set(INPUT_COLUMNS) == {"target_determined", "source_scene", "target_scene", "edited_object"}
    features = input_features(schema)
    assert features.keys() == set(schema.names)
    for name in ("image", "reference_mask", "reference_image"):
        assert schema.field(name).type == IMAGE and features[name] == {"_type": "Image"}


def test_records_hold_what_their_scenes_show(output: Path) -> None:
    rows = pq.read_table(output).to_pylist()
    assert rows[7]["id"] == "test-0-000007" and len({row["id"] for row in rows}) == COUNT
    assert len({row["category"] for row in rows[:17]}) == 10
    assert {row["target_determined"] for row in rows} == {True, False}
    for row in rows:
        source, target = (scene_from_json(row[name]) for name in ("source_scene", "target_scene"))
        before, after, mask = (picture(row[name]) for name in ("image", "reference_image", "reference_mask"))
        assert (before == render_scene(source, 64)).all() and (after == render_scene(target, 64)).all()
        assert mask.dtype == np.uint8 and mask.shape == (64, 64) and set(np.unique(mask)) <= {0, 255}
        assert (before == after)[mask == 0].all() and (before != after).any()
        assert row["category"][0].isdigit() and row["instruction"]
        assert (row["blend_words"] is None) == (source.style != target.style)
    row = next(row for row in rows if row["category"] == "6_change_attribute_color")
    source, target = (scene_from_json(row[name]) for name in ("source_scene", "target_scene"))
    index = row["edited_object"]["source"]
    read = attributes_of(read_scene(picture(row["reference_image"]), layout_of(target)))
    key = f"objects.{index}.colour"
    assert read[key] == target.objects[index].colour != source.objects[index].colour


def test_the_bytes_are_the_same_every_time(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"output={tmp_path}", f"count={COUNT}", "size=64"]) == 0
    assert (tmp_path / "records.parquet").read_bytes() == output.read_bytes()
    assert capsys.readouterr().out == f"{COUNT} records: {tmp_path / 'records.parquet'}\n"
    assert main([f"output={tmp_path}", f"count={COUNT}", "size=64", "seed=1"]) == 0
    first, second = (pq.read_table(path)["source_prompt"].to_pylist() for path in (output, tmp_path))
    assert first != second


def test_categories_are_chosen(tmp_path: Path) -> None:
    words = ["count=7", "size=64", "split=validation", "categories=[change_object, delete_object]"]
    assert main([f"output={tmp_path}", *words]) == 0
    rows = pq.read_table(tmp_path / "records.parquet").to_pylist()
    assert {row["category"] for row in rows} == {"1_change_object", "3_delete_object"}
    assert rows[0]["id"] == "validation-0-000000"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("split=all", "split: got 'all'; allowed: train, validation, test"),
        ("count=0", "count: got 0; allowed: 1 to 4294967296"),
        ("size=7", "size: got 7; allowed: 32 to 2048"),
        ("seed=-1", "seed: got -1; allowed: 0 to 268435455"),
        ("categories=[colour]", "categories: got 'colour'; allowed: random, change_object, add_object"),
    ],
)
def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, message: str) -> None:
    assert main([f"output={tmp_path}", word]) == 2
    assert capsys.readouterr().err.startswith(f"jobs.scenes: {message}")


def test_other_records_are_not_written_over_and_other_scenes_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"output={tmp_path}", "size=64"]
    assert main([*words, "count=1"]) == main([*words, "count=1"]) == 0 and not caplog.messages
    assert main([*words, "count=2"]) == 0
    assert any("other scenes stood there, which are written over" in text for text in caplog.messages)
    pq.write_table(pq.read_table(tmp_path / "records.parquet").drop_columns(["source_scene"]), tmp_path / "records.parquet")
    assert main([*words, "count=2"]) == 2 and "which holds other records" in capsys.readouterr().err
