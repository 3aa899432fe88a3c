"""Metrics that ride along in an editing run through real Ray: what is absent stays absent, and going on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pipelines.edit.edit import run_edit
from tests.pipeline.conftest import MakeJob, MakePicture, write_records
from vimaedit.config import ModelConfig
from vimaedit.errors import ConfigError
from vimaedit.metrics.dino import KeyNetwork
from vimaedit.models.files import resolve_model

pytestmark = pytest.mark.timeout(290)

OF_LPIPS = ("background_lpips", "target_lpips", "lpips_whole")


def test_a_metric_without_its_network_is_absent_by_name_and_stays_so(
    tmp_path: Path, make_job: MakeJob, make_picture: MakePicture
) -> None:
    torch.manual_seed(0)
    dino = tmp_path / "dino.pth"
    torch.save(KeyNetwork(width=24, hidden=17, depth=2, patch=8, num_positions=785).state_dict(), dino)
    prompts = {"source_prompt": "a cat on a lawn", "target_prompt": "a dog on a lawn"}
    write_records(tmp_path / "in" / "a.parquet", [{"image": make_picture(1), **prompts}])
    missing = str(tmp_path / "nowhere.pth")
    clip = str(resolve_model(ModelConfig(model="random")).clip)
    job = make_job(metrics=["lpips", "structure"], dino=str(dino), lpips=missing, scoring_clip=clip)
    summary = run_edit(job)
    assert summary.exit_code == 0
    said = [text for text in summary.warnings if "absent" in text]
    assert len(said) == 1 and said[0].startswith(
        f"{', '.join(OF_LPIPS)}: absent, since lpips: got '{missing}', which is no file"
    )
    (row,) = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert all(row["metrics"][name] is None for name in OF_LPIPS) and row["metrics"]["structure_distance"] > 0
    assert "clip_whole" not in row["metrics"]
    dino.rename(tmp_path / "elsewhere.pth")
    assert run_edit(job).was_finished  # nothing is measured any more
    (tmp_path / "out" / "_SUCCESS").unlink()
    with pytest.raises(
        ConfigError, match=r'other settings: absent metrics \["background_lpips", .*, "structure_distance", "target_'
    ):
        run_edit(job)
    (tmp_path / "elsewhere.pth").rename(dino)
    assert run_edit(job).exit_code == 0 and run_edit(job).was_finished
    with pytest.raises(ConfigError, match=r'other settings: metrics=\["lpips"\], was \["lpips", "structure"\], column metrics'):
        run_edit(dataclasses.replace(job, metrics=["lpips"]))
