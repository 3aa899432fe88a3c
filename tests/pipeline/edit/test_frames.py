"""Pictures that are not square, through both fits and both frames; given masks; pictures by reference."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.cluster.place import Placement
from pipelines.cluster.workers import await_worker
from pipelines.edit.edit import run_edit
from pipelines.output.config import EditJobConfig
from tests.pipeline.conftest import MakeJob, MakePicture, write_records
from vimaedit.config import Canvas
from vimaedit.errors import ConfigError

pytestmark = pytest.mark.timeout(120)

SIZES = ((640, 448), (384, 600))


def pixels(value: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(value["bytes"])))


@pytest.mark.parametrize(
    ("frame", "fit"),
    [
        ("original", "keep"),
        pytest.param("canvas", "crop", marks=pytest.mark.slow),
        pytest.param("canvas", "keep", marks=pytest.mark.slow),
        pytest.param("original", "crop", marks=pytest.mark.slow),
    ],
)
def test_source_edit_and_masks_share_one_frame(
    tmp_path: Path, make_job: MakeJob, make_picture: MakePicture, fit: str, frame: str
) -> None:
    originals = [make_picture(number, size=size) for number, size in enumerate(SIZES)]
    masks = [make_picture(0, size=(width // 8, height // 8), mode="1") for width, height in SIZES]
    records = [
        {"image": picture, "source_prompt": "a cat", "target_prompt": "a dog", "given_mask": mask}
        for picture, mask in zip(originals, masks, strict=True)
    ]
    records += [{**records[0], "given_mask": None}, {**records[0], "given_mask": masks[1]}]
    write_records(tmp_path / "in" / "a.parquet", records)
    run_edit(make_job(frame=frame, canvas=Canvas(fit=fit), grounding="given"))
    *rows, without_mask, of_another_aspect = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert without_mask["status"] == "rejected"
    assert "given_mask: got null; allowed: a mask, with grounding=given" in without_mask["error_message"]
    assert of_another_aspect["error_type"] == "mask_aspect"
    for row, size, original in zip(rows, SIZES, originals, strict=True):
        assert row["status"] == "ok", row["error_message"]
        assert row["original_size"] == {"width": size[0], "height": size[1]}
        source, edited = pixels(row["image"]), pixels(row["edited_image"])
        edit_mask, critical_mask = pixels(row["edit_mask"]), pixels(row["critical_mask"])
        assert source.shape == edited.shape == (*edit_mask.shape, 3)
        assert (edit_mask == critical_mask).all() and 0 < (edit_mask > 0).mean() < 1
        box = row["crop_box"]
        if frame == "original":
            assert source.shape[1::-1] == size and (box["right"], box["bottom"]) == size and box["left"] == box["top"] == 0
            assert (source == np.asarray(Image.open(io.BytesIO(original)))).all()
            assert (source == edited)[edit_mask == 0].all() and (source != edited)[edit_mask > 0].any()
        elif fit == "crop":
            assert source.shape == (128, 128, 3)
            assert box["right"] - box["left"] == box["bottom"] - box["top"] == min(size)
        else:
            height, width = source.shape[:2]
            assert (width > height) == (size[0] > size[1]) and width * height <= 128 * 128
            assert abs((box["right"] - box["left"]) / (box["bottom"] - box["top"]) - width / height) < 0.02
    if frame == "original" and fit == "crop":
        left = (640 - 448) // 2
        source, edited = pixels(rows[0]["image"]), pixels(rows[0]["edited_image"])
        assert (source[:, :left] == edited[:, :left]).all() and (source != edited).any()


def test_pictures_by_reference_one_too_wide_for_the_format_and_a_sheet_that_cannot_be_written(
    tmp_path: Path, make_job: MakeJob, make_picture: MakePicture
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(make_picture(1))
    (tmp_path / "pictures" / "wide.png").write_bytes(make_picture(1, size=(16411, 17)))
    (tmp_path / "secret.png").write_bytes(make_picture(2))
    (tmp_path / "out" / "sheet.png").mkdir(parents=True)
    references = ["a.png", "../secret.png", "b.png", "http://127.0.0.1:9/a.png", None, "wide.png"]
    records = [{"image": reference, "source_prompt": "a cat", "target_prompt": "a dog"} for reference in references]
    write_records(tmp_path / "in.parquet", records)
    options = {"image_root": str(tmp_path / "pictures"), "frame": "original", "keep_source": "path", "image_format": "webp"}
    summary = run_edit(make_job(input=str(tmp_path / "in.parquet"), sheet=3, max_rejected_fraction=1.0, **options))
    assert (summary.exit_code, summary.sheet) == (0, None)
    assert summary.warnings[-1].startswith("sheet: IsADirectoryError: ") and (tmp_path / "out" / "_SUCCESS").exists()
    good, *refused, wide = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert (good["status"], good["image"]) == ("ok", {"bytes": None, "path": "a.png"})
    assert Image.open(io.BytesIO(good["edited_image"]["bytes"])).format == "WEBP"
    kinds = ["reference_not_allowed", "missing_image", "reference_not_allowed", "null_value"]
    assert [(row["status"], row["error_type"]) for row in refused] == [("rejected", kind) for kind in kinds]
    assert (wide["status"], wide["error_stage"]) == ("rejected", "encode")
    assert "16411x17 px; allowed: up to 16383 px a side" in wide["error_message"]


def test_no_gpu_within_the_time_is_refused(cluster: None) -> None:
    placement = Placement(use_gpu=True, num_actors=None, likely_actors=1, threads=1, num_cpus=1.0, waits=True)
    with pytest.raises(ConfigError, match="^device: got cuda, but no GPU has come within 1 s; allowed: a cluster that has one"):
        await_worker(placement, timeout_s=1.0)
    await_worker(dataclasses.replace(placement, use_gpu=False), timeout_s=60.0)


def test_wrong_configurations_end_before_any_work(tmp_path: Path, make_job: MakeJob, make_picture: MakePicture) -> None:
    write_records(tmp_path / "in" / "a.parquet", [{"image": make_picture(1), "source_prompt": "a", "target_prompt": "b"}])
    (tmp_path / "file").write_text("")
    cases: list[tuple[EditJobConfig, str]] = [
        (make_job(model="no/such/model/here"), "model: got"),
        (make_job(canvas=Canvas(size=131)), r"canvas.size: got 131; allowed: a multiple of the model's \d+ px"),
        (
            make_job(model="random-sd3", canvas=Canvas(size=272)),
            "canvas.size: got 272; allowed: up to 256 px, the longest side",
        ),
        (make_job(device="cuda"), "device: got cuda, but the cluster has no GPU and gets none; allowed: auto, cpu"),
        (make_job(output=str(tmp_path / "file" / "out")), "output: got '.*/file/out', where nothing can be written"),
        (make_job(actors=9973), "actors: got 9973, too many for 4 CPUs; allowed: at most 300"),
        (make_job(input=str(tmp_path / "nowhere")), "where there is no Parquet file"),
        (make_job(columns={"id": "name"}), "columns.id: got 'name', which the input lacks"),
    ]
    for job, text in cases:
        with pytest.raises(ConfigError, match=text):
            run_edit(job)
    assert not (tmp_path / "out").exists()
