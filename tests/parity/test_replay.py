"""The public engine held to the recorded runs: two cases in `make test`, all of them in `make parity`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.parity.replay import load_models, main, replay_case

QUICK = ("ddim10_default", "dpm10_noblend_insert")


@pytest.mark.parametrize("case", QUICK)
def test_recorded_case_holds(oracle: Path, case: str) -> None:
    entry = json.loads((oracle / "cases" / "cases.json").read_text())["cases"][case]
    outcome = replay_case(case, entry, oracle / "cases", load_models(oracle))
    assert outcome.misses == [] and outcome.undecided is None and outcome.mask_pixels == 0
    assert outcome.errors["final"] <= 5e-4 and outcome.saved["final_latents"].shape == (2, 4, 64, 64)


def test_a_wrong_recording_is_a_miss_and_an_unreadable_one_too(oracle: Path, tmp_path: Path) -> None:
    """The judge must be able to fail: one number of the recording changed, one file missing."""
    import numpy as np

    (tmp_path / "models").symlink_to(oracle / "models")
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "inputs").symlink_to(oracle / "cases" / "inputs")
    entry = json.loads((oracle / "cases" / "cases.json").read_text())["cases"]["ddim10_noblend"]
    with np.load(oracle / "cases" / "ddim10_noblend.npz") as file:
        arrays = {key: file[key] for key in file.files}
    arrays["final_latents"] = arrays["final_latents"] + np.float32(1e-3)
    np.savez(tmp_path / "cases" / "wrong.npz", **arrays)
    cases = {"wrong": {**entry, "file": "wrong.npz"}, "missing": {**entry, "file": "missing.npz"}}
    (tmp_path / "cases" / "cases.json").write_text(json.dumps({"cases": cases}))
    assert main(["--oracle", str(tmp_path), "--only", "cases", "--save", str(tmp_path / "saved")]) == 1
    with np.load(tmp_path / "saved" / "wrong.npz") as saved:
        assert {"final_latents", "critical_mask", "image_embeds_edit", "x_T"} == set(saved.files)
        assert saved["critical_mask"].shape == (10, 64, 64) and saved["final_latents"].shape == (2, 4, 64, 64)


@pytest.mark.parity
@pytest.mark.skipif(os.environ.get("VIMAEDIT_PARITY") != "all", reason="set VIMAEDIT_PARITY=all, or run make parity")
@pytest.mark.timeout(3600)
def test_every_recorded_case_holds(oracle: Path) -> None:
    assert main(["--oracle", str(oracle), "--only", "cases"]) == 0
