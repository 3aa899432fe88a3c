"""A pipeline of diffusers in the actors: instructions in, the same rows out as of any editor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.edit.edit import run_edit
from tests.hosted import write_pix2pix
from tests.pipeline.conftest import MakeJob, MakePicture, write_records
from vimaedit.config import Canvas
from vimaedit.decoding import decode_image
from vimaedit.mask_decoding import decode_mask
from vimaedit.methods.options import HostedPipeline

pytestmark = pytest.mark.timeout(170)


def test_instructions_are_edited_by_a_hosted_pipeline(tmp_path: Path, make_job: MakeJob, make_picture: MakePicture) -> None:
    records = [
        {"image": make_picture(n, size=size), "source_prompt": "a cat", "target_prompt": "a dog", "instruction": text}
        for n, (size, text) in enumerate(
            [((300, 200), "make it blue"), ((200, 200), None), ((200, 300), "turn it upside down")]
        )
    ]
    records.append({**records[0], "image": b"no picture"})
    write_records(tmp_path / "in" / "a.parquet", records)
    hosted = HostedPipeline(arguments={"image_guidance_scale": 1.2}, mask_threshold=0.02)
    options = {
        "model": str(write_pix2pix(tmp_path / "model")),
        "method": "pipeline",
        "grounding": "difference",
        "image_guidance": False,
    }
    job = make_job(**options, blend="none", steps=2, batch_size=2, pipeline=hosted, frame="original", canvas=Canvas(fit="keep"))
    summary = run_edit(job)
    assert summary.counts == {"ok": 3, "rejected": 1, "failed": 0, "quarantined": 0}
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert [row["instruction"] for row in rows] == [record["instruction"] for record in records]
    for row, record in zip(rows[:3], records, strict=False):
        assert (row["method"], row["family"], row["mask_source"]) == (
            "pipeline",
            "StableDiffusionInstructPix2PixPipeline",
            "difference",
        )
        source, edited = (decode_image(row[name]["bytes"]) for name in ("image", "edited_image"))
        assert (source == decode_image(record["image"])).all() and edited.shape == source.shape
        mask = decode_mask(row["edit_mask"]["bytes"])
        assert mask.any() and (source == edited)[~mask].all() and (source != edited)[mask].any()
        assert row["metrics"]["shift_px"] is None or row["metrics"]["shift_px"] >= 0
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["model_batches"] is True and run["config"]["pipeline"]["arguments"] == {"image_guidance_scale": 1.2}
    again = run_edit(job)
    assert again.was_finished and np.all([row["status"] == "ok" for row in rows[:3]])
