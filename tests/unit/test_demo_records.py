"""The drawn demonstration records are what `jobs.edit` takes."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.demo_records import COLOURS, SCENES, demo_table, main, shape_outline


def test_the_job_writes_the_same_records_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"output={tmp_path / 'a'}"]) == 0
    assert main([f"output={tmp_path / 'b'}"]) == 0
    first, second = (pq.read_table(tmp_path / name / "records.parquet") for name in "ab")
    assert first == second and first.num_rows == len(SCENES)
    assert first != demo_table(seed=1)
    assert str(tmp_path / "a" / "records.parquet") in capsys.readouterr().out


def test_records_cover_what_the_demo_is_to_show() -> None:
    rows = demo_table(seed=0).to_pylist()
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    assert any(picture.width != picture.height for picture in pictures)
    assert {row["blend_words"] is None for row in rows} == {True, False}
    for row, scene, picture in zip(rows, SCENES, pictures, strict=True):
        assert picture.size == scene.size
        middle = picture.getpixel((scene.size[0] // 2, int(scene.size[1] * 0.56)))
        assert middle == COLOURS[scene.colour]
        assert row["source_prompt"] != row["target_prompt"]
        for phrase in row["blend_words"] or []:
            assert phrase["source"] in row["source_prompt"] and phrase["target"] in row["target_prompt"]


def test_articles_fit_their_nouns() -> None:
    prompts = {row["source_prompt"] for row in demo_table(seed=0).to_pylist()}
    assert "an orange star on a snowy field" in prompts and "a red circle on a green lawn" in prompts


@pytest.mark.parametrize("shape", sorted({scene.shape for scene in SCENES} | {scene.new_shape for scene in SCENES}))
def test_outlines_stay_near_the_unit_circle(shape: str) -> None:
    assert all(abs(x) <= 1.001 and abs(y) <= 1.1 for x, y in shape_outline(shape))
