"""The public engine held to the recorded runs: a few cases in `make test`, all of them in `make parity`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.parity.comparison import Comparison
from tests.parity.flow_cases import replay_flow_case
from tests.parity.harness_cases import replay_harness_case
from tests.parity.replay import load_models, main, replay_case
from tests.parity.sdxl_cases import replay_sdxl_case

QUICK = ("ddim10_default",)
QUICK_XL = ("t2i_ip_vith", "vimaedit_dpm_bigg", "leditspp_two_intersect", "p2p_replace_blend")
QUICK_BASELINES = ("di_p2p_replace",)


@pytest.mark.parametrize("case", QUICK)
def test_recorded_case_holds(oracle: Path, case: str) -> None:
    entry = json.loads((oracle / "cases" / "cases.json").read_text())["cases"][case]
    outcome = replay_case(case, entry, oracle / "cases", load_models(oracle))
    assert outcome.misses == [] and outcome.undecided is None and outcome.mask_pixels == 0
    assert outcome.errors["final"] <= 5e-4 and outcome.saved["final_latents"].shape == (2, 4, 64, 64)
    assert outcome.saved.keys() == {"final_latents", "critical_mask", "image_embeds_edit", "x_T"}
    assert outcome.saved["critical_mask"].shape == (10, 64, 64)


@pytest.mark.parametrize("case", QUICK_BASELINES)
def test_recorded_baseline_holds(oracle: Path, case: str) -> None:
    entry = json.loads((oracle / "baselines" / "cases_harness.json").read_text())["cases"][case]
    models = load_models(oracle, image_guidance=False)
    outcome = replay_harness_case(case, entry, oracle / "baselines", models)
    assert outcome.misses == [] and outcome.undecided is None and outcome.mask_pixels == 0
    assert outcome.errors["latents"] <= 1e-3 and outcome.saved["final_target"].shape == (4, 64, 64)


@pytest.mark.parametrize("case", QUICK_XL)
def test_recorded_case_of_another_family_holds(oracle: Path, case: str) -> None:
    entry = json.loads((oracle / "sdxl" / "cases" / "cases.json").read_text())["cases"][case]
    outcome = replay_sdxl_case(case, entry, oracle / "sdxl" / "cases")
    assert outcome.misses == [] and outcome.undecided is None and outcome.mask_pixels == 0
    assert outcome.errors["latents"] <= 5e-4 and outcome.saved["final_latents"].shape == (4, 32, 32)


QUICK_FLOWS = (
    "sdxl/uniedit_ddim",
    "sd3/t2i_default",
    "sd3/flowedit_navg2",
    "sd3/uniedit_default",
    "flux/t2i_default",
    "flux/uniedit_default",
)
QUICK_FLOWS += ("flux/flowedit_navg1", "flux/fireflow_replace_v", "flux/rf_solver_replace_v")


@pytest.mark.parametrize("case", QUICK_FLOWS)
def test_recorded_case_of_a_flow_model_holds(oracle: Path, case: str) -> None:
    family, name = case.split("/")
    folder = oracle / family / "cases"
    outcome = replay_flow_case(name, json.loads((folder / "cases.json").read_text())["cases"][name], folder)
    assert outcome.misses == [] and {"final", "latents", "text", "levels"} <= set(outcome.errors)
    channels = 4 if family == "sdxl" else 16
    assert outcome.saved["final_latents"].shape == (channels, 32, 32) and ("mask" in outcome.saved) == name.startswith(
        "uniedit"
    )


def test_a_wrong_number_of_a_flow_recording_is_a_miss(oracle: Path, tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(oracle / "sd3" / "models")
    (tmp_path / "cases").mkdir()
    with np.load(oracle / "sd3" / "cases" / "uniedit_default.npz") as file:
        arrays = {key: file[key] for key in file.files}
    arrays["latents"][-1, 3, 7, 5] += 3e-4
    arrays["mask"][2, 4, 9] += 1e-3
    np.savez(tmp_path / "cases" / "wrong.npz", **arrays)
    entry = json.loads((oracle / "sd3" / "cases" / "cases.json").read_text())["cases"]["uniedit_default"]
    outcome = replay_flow_case("wrong", {**entry, "file": "wrong.npz"}, tmp_path / "cases")
    assert len(outcome.misses) == 2 and outcome.misses[0].startswith("final ") and outcome.misses[1].startswith("map ")


def test_what_is_not_recorded_of_a_drawn_picture_is_not_compared(oracle: Path, tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(oracle / "flux" / "models")
    (tmp_path / "cases").mkdir()
    with np.load(oracle / "flux" / "cases" / "t2i_default.npz") as file:
        arrays = {key: file[key] for key in ("init_noise", "latents")}
    np.savez(tmp_path / "cases" / "less.npz", **arrays)
    entry = json.loads((oracle / "flux" / "cases" / "cases.json").read_text())["cases"]["t2i_default"]
    kept = {key: entry["parameters"][key] for key in ("prompt", "steps", "guidance_scale", "height", "width")}
    outcome = replay_flow_case("less", {**entry, "file": "less.npz", "parameters": kept}, tmp_path / "cases")
    assert outcome.misses == [] and set(outcome.errors) == {"latents", "final"}


def test_an_editor_without_a_method_is_a_miss(oracle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models").symlink_to(oracle / "models")
    (tmp_path / "baselines").mkdir()
    cases = {
        "other": {"editor": "Pix2Pix", "parameters": {}},
        "unnamed": {"parameters": {"edit_method": "ddim+pix2pix-zero"}, "file": "../../absent.npz"},
        "words": {"editor": "DPL (token optimisation only)", "parameters": {}},
    }
    (tmp_path / "baselines" / "cases_x.json").write_text(json.dumps({"cases": cases}))
    assert main(["--oracle", str(tmp_path), "--only", "baselines"]) == 1
    table = capsys.readouterr().out
    assert "there is no method for Pix2Pix" in table and table.count("cannot be read") == 2
    assert "0 of 3 cases hold; missed: other, unnamed, words" in table


def test_a_mask_within_its_margin_is_undecided() -> None:
    outcome = Comparison("case", margin=1e-4)
    own = np.zeros((2, 3), dtype=bool)
    other = own.copy()
    other[0, 1] = True
    outcome.mask(2, own, other, 2e-4)
    assert outcome.misses == ["step 2: 1 mask pixels different"] and outcome.judges(3)
    outcome.mask(3, own, other, 5e-5)
    assert outcome.undecided == 3 and not outcome.judges(3) and len(outcome.misses) == 1
    outcome.latents(3, np.ones(1), np.zeros(1))
    assert len(outcome.misses) == 1
    outcome.latents(2, np.ones(1), np.zeros(1))
    assert outcome.misses[-1] == "latents 1.00e+00 > 5e-04"


def test_a_wrong_recording_is_a_miss_and_an_unreadable_one_too(
    oracle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The judge must be able to fail: one number of the recording changed, one file missing."""
    family = tmp_path / "sdxl"
    (family / "cases").mkdir(parents=True)
    (family / "models").symlink_to(oracle / "sdxl" / "models")
    entry = json.loads((oracle / "sdxl" / "cases" / "cases.json").read_text())["cases"]["t2i_none"]
    with np.load(oracle / "sdxl" / "cases" / "t2i_none.npz") as file:
        arrays = {key: file[key] for key in file.files}
    arrays["latents"][-1, 0, 3, 7, 5] += np.float32(1e-3)
    np.savez(family / "cases" / "wrong.npz", **arrays)
    cases = {"wrong": {**entry, "file": "wrong.npz"}, "missing": {**entry, "file": "missing.npz"}}
    (family / "cases" / "cases.json").write_text(json.dumps({"cases": cases}))
    assert main(["--oracle", str(tmp_path), "--only", "sdxl", "--save", str(tmp_path / "saved")]) == 1
    assert "0 of 2 cases hold; missed: wrong, missing" in capsys.readouterr().out
    with np.load(tmp_path / "saved" / "wrong.npz") as saved:
        assert "final_latents" in saved.files and saved["final_latents"].shape == (4, 32, 32)
