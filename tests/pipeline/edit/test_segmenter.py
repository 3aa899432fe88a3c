"""grounding=segmenter on a real Ray: a stage of its own gives the rows their masks, whoever edits them and however often."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.edit.edit import run_edit
from pipelines.output.config import EditJobConfig
from tests.hosted import write_pix2pix
from tests.pipeline.conftest import MakeJob, write_records
from tests.segmenters import red_and_blue, write_owlvit, write_sam
from vimaedit.config import Canvas, ModelConfig
from vimaedit.decoding import decode_image
from vimaedit.errors import ConfigError
from vimaedit.images import encode_image
from vimaedit.mask_decoding import decode_mask
from vimaedit.methods.options import HostedPipeline, Segmenter
from vimaedit.models.files import model_digest, resolve_model
from vimaedit.scenes.render import object_pixels, render_scene
from vimaedit.types import UInt8Array

pytestmark = pytest.mark.timeout(170)

SCENE = red_and_blue()
SIDE = 128  # of the canvas of the random model
PICTURE = encode_image(render_scene(SCENE, SIDE), "png")


def prompts(source: str, target: str | list[str], picture: bytes = PICTURE) -> dict[str, Any]:
    return {"image": picture, "source_prompt": source, "target_prompt": target}


def rows_of(job: EditJobConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(job.output) / "data").to_pylist()
    return rows


def made(rows: list[dict[str, Any]]) -> list[Any]:
    """Return what has to be equal to the byte."""
    names = ("id", "edit_index", "edited_image", "edit_mask", "critical_mask", "mask_source", "warnings", "status")
    return [[row[name] for name in names] for row in rows]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    folder = write_owlvit(tmp_path_factory.mktemp("segmenter") / "colours", sees_colours=True)
    return Segmenter(detector=str(folder), model=None, threshold=0.5)


def test_masks_come_from_a_stage_of_their_own(tmp_path: Path, make_job: MakeJob, segmenter: Segmenter) -> None:
    many = [prompts("a red square", ["a yellow square", "a cat"]), prompts("a blue circle", ["a dog"])]
    write_records(tmp_path / "in" / "a.parquet", many)
    missed = [
        prompts("a green star", ["a green cat"]),
        prompts("a red square", ["a dog"], b"no picture"),
        prompts("a", ["a cat"]),
    ]
    write_records(tmp_path / "in" / "b.parquet", missed)
    job = make_job(grounding="segmenter", segmenter=segmenter, batch_size=2, image_guidance=False)
    summary = run_edit(job)
    assert summary.counts == {"ok": 5, "rejected": 1, "failed": 0, "quarantined": 0}
    rows = rows_of(job)
    assert [row["mask_source"] for row in rows[:3]] == ["segmenter"] * 3
    for row, index in zip(rows[:3], (0, 0, 1), strict=True):
        mask, truth = decode_mask(row["edit_mask"]["bytes"]), object_pixels(SCENE, index, SIDE)
        assert (mask & truth).sum() / (mask | truth).sum() > 0.65  # of cells of 8 px
        assert row["critical_mask"] == row["edit_mask"] and not any("segmenter" in each for each in row["warnings"])
    star, broken, without = rows[3:]
    assert star["mask_source"] == "attention" and star["warnings"][0].startswith("segmenter_missed: 'star', not seen")
    assert broken["status"] == "rejected" and broken["error_stage"] != "segment"
    assert without["mask_source"] == "attention" and without["warnings"][0].startswith("segmenter_missed: no words")

    with pytest.raises(ConfigError, match="segmenter.threshold=0.6, was 0.5"):
        run_edit(dataclasses.replace(job, segmenter=dataclasses.replace(segmenter, threshold=0.6)))
    plain = model_digest(resolve_model(ModelConfig(model=job.model), image_guidance=False))
    assert plain != rows[0]["model_digest"]  # it covers the segmenter's weights


@pytest.mark.slow
def test_lost_masks_are_found_again_by_others(tmp_path: Path, make_job: MakeJob, segmenter: Segmenter) -> None:
    for name, source in (("a", "a red square"), ("b", "a blue circle")):
        write_records(tmp_path / "in" / f"{name}.parquet", [prompts(source, ["a dog", "a cat"])])
    job = make_job(grounding="segmenter", segmenter=segmenter, batch_size=2, image_guidance=False)
    assert run_edit(job).exit_code == 0
    rows = rows_of(job)

    # The unit whose part is lost is made again by other actors, two segmenters.
    lost = next((Path(job.output) / "data").glob("*.parquet"))
    lost.unlink()
    (Path(job.output) / "_SUCCESS").unlink()
    again = dataclasses.replace(job, segmenter=dataclasses.replace(segmenter, actors=2))
    assert run_edit(again).exit_code == 0 and made(rows_of(job)) == made(rows)


@pytest.mark.slow
def test_what_is_not_found_may_be_rejected(tmp_path: Path, make_job: MakeJob, segmenter: Segmenter) -> None:
    write_records(tmp_path / "in" / "a.parquet", [prompts("a green star", "a cat"), prompts("a red square", "a cat")])
    strict = dataclasses.replace(segmenter, missing="reject")
    job = make_job(grounding="segmenter", segmenter=strict, batch_size=2, image_guidance=False)
    assert run_edit(job).counts == {"ok": 1, "rejected": 1, "failed": 0, "quarantined": 0}
    rejected, edited = rows_of(job)
    assert (rejected["error_stage"], rejected["error_type"]) == ("segment", "segmenter_missed")
    assert rejected["error_message"].startswith("record 'a.parquet#0': segmenter: got 'green star', not seen in the picture")
    assert edited["mask_source"] == "segmenter" and rejected["edit_mask"] is None


@pytest.mark.slow
def test_a_hosted_pipeline_is_kept_to_the_mask(tmp_path: Path, make_job: MakeJob, segmenter: Segmenter) -> None:
    whole = render_scene(SCENE, 200)
    record = prompts("a red square", "a cat", encode_image(whole, "png"))
    write_records(tmp_path / "in" / "a.parquet", [{**record, "instruction": "make it a cat"}])
    options = {"model": str(write_pix2pix(tmp_path / "model")), "method": "pipeline", "grounding": "segmenter"}
    hosted = HostedPipeline(mask_threshold=0.02)
    common: dict[str, Any] = {"blend": "none", "steps": 1, "batch_size": 1, "frame": "original", "canvas": Canvas(fit="keep")}
    job = make_job(**options, **common, image_guidance=False, segmenter=segmenter, pipeline=hosted)
    assert run_edit(job).exit_code == 0
    (row,) = rows_of(job)
    source, edited = (decode_image(row[name]["bytes"]) for name in ("image", "edited_image"))
    mask, truth = decode_mask(row["edit_mask"]["bytes"]), object_pixels(SCENE, 0, 200)
    assert row["mask_source"] == "segmenter" and (mask & truth).sum() / (mask | truth).sum() > 0.7
    assert (source == edited)[~mask].all() and changed(source, edited)[mask].mean() > 0.5
    assert row["metrics"]["background_mse"] > 0  # measured before pasting: the pipeline itself keeps nothing


def changed(source: UInt8Array, edited: UInt8Array) -> Any:
    return np.any(source != edited, axis=-1)


def test_networks_that_do_not_work_end_the_run_before_it_is_planned(
    tmp_path: Path, make_job: MakeJob, segmenter: Segmenter
) -> None:
    write_records(tmp_path / "in" / "a.parquet", [prompts("a red square", "a cat")])
    wrong = dataclasses.replace(segmenter, detector=str(write_sam(tmp_path / "sam")))
    with pytest.raises(ConfigError, match=r"segmenter.detector: got .*sam', which does not work"):
        run_edit(make_job(grounding="segmenter", segmenter=wrong, image_guidance=False))
    assert not (tmp_path / "out" / "plan").exists()
