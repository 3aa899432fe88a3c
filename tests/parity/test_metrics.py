"""The metrics held to the recorded values of the standard evaluation, and that the judge can fail."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity.metrics import compare, load_backbones, main, measure, table
from vimaedit.metrics.dino import dino_pixels, load_dino, self_similarity
from vimaedit.metrics.pixels import to_pictures

PAIR = "edit_inside"


@pytest.mark.parity
def test_every_recorded_value_holds(oracle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--oracle", str(oracle), "--save", str(tmp_path / "out.json")]) == 0
    assert "126 values of 7 pairs, 0 misses, 0 pairs unreadable" in capsys.readouterr().out
    saved = json.loads((tmp_path / "out.json").read_text())
    recorded = json.loads((oracle / "metrics" / "metrics.json").read_text())["pairs"]
    assert {pair: set(values) for pair, values in saved.items()} == {
        pair: set(entry["official"]) for pair, entry in recorded.items()
    }
    assert saved["identical"]["psnr"] == "inf" and saved["mask_full"]["psnr_unedit_part"] == "nan"


def test_a_wrong_record_and_a_missing_picture_fail(oracle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    (tmp_path / "models").symlink_to(oracle / "models")
    for entry in (oracle / "metrics").iterdir():
        if entry.name != "metrics.json":
            (folder / entry.name).symlink_to(entry)
    recorded = json.loads((oracle / "metrics" / "metrics.json").read_text())["pairs"]["mask_zero"]
    recorded["official"]["lpips"] += 2e-5
    (folder / "metrics.json").write_text(json.dumps({"pairs": {"mask_zero": recorded, "absent": recorded}}))
    assert main(["--oracle", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "unreadable: absent: FileNotFoundError" in out and "18 values of 1 pairs, 1 misses, 1 pairs unreadable" in out
    assert [line.split()[1] for line in out.splitlines() if line.endswith("MISS")] == ["lpips"]


def test_nan_and_inf_are_held_to_the_record() -> None:
    entry = {"official": {"psnr": "inf", "mse": 0.0, "lpips": "nan"}}
    assert not any(line.is_miss for line in compare("p", entry, {"psnr": math.inf, "mse": 0.0, "lpips": math.nan}))
    assert all(line.is_miss for line in compare("p", entry, {"psnr": 99.0, "mse": 2e-7, "lpips": 0.0}))
    lines = list(compare("p", entry, {}))  # not computed at all
    assert [line.metric for line in lines if line.is_miss] == ["psnr", "mse"] and "MISS" in table(lines)


def test_both_forms_of_dino_give_the_recorded_keys(oracle: Path) -> None:
    from PIL import Image

    recorded = np.load(oracle / "metrics" / "intermediates.npz")
    picture = np.array(Image.open(oracle / "metrics" / "images" / f"{PAIR}_tgt.png").convert("RGB"))
    pixels = dino_pixels(to_pictures([picture]))
    np.testing.assert_allclose(pixels[0, :, ::32].numpy(), recorded[f"{PAIR}_tgt_normalised_rows"], atol=1e-3)
    for form in ("dino_tiny_vitb8_layout.safetensors", "dino_tiny_hf_vit"):
        with torch.inference_mode():
            keys = load_dino(str(oracle / "metrics" / form))(pixels)
            similarity = self_similarity(keys)
        np.testing.assert_allclose(keys[0].numpy(), recorded[f"{PAIR}_tgt_keys_layer11"], atol=2e-5)
        np.testing.assert_allclose(similarity[0, ::49].numpy(), recorded[f"{PAIR}_tgt_selfsim_rows"], atol=2e-5)


def test_lpips_holds_layer_by_layer(oracle: Path) -> None:
    from PIL import Image

    recorded = np.load(oracle / "metrics" / "intermediates.npz")
    pictures = [
        np.array(Image.open(oracle / "metrics" / "images" / f"{PAIR}_{side}.png").convert("RGB")) for side in ("src", "tgt")
    ]
    first, second = (2 * to_pictures([picture]).float() / 255 - 1 for picture in pictures)
    with torch.inference_mode():
        shares = load_backbones(oracle).lpips(first, second)
    np.testing.assert_allclose(shares[0].numpy(), recorded[f"{PAIR}_lpips_per_layer"], atol=1e-8)


def test_the_other_form_of_dino_holds_too(oracle: Path) -> None:
    backbones = load_backbones(oracle, dino="dino_tiny_hf_vit")
    entry = json.loads((oracle / "metrics" / "metrics.json").read_text())["pairs"]["mask_full"]
    with torch.inference_mode():
        lines = list(compare("mask_full", entry, measure(oracle / "metrics", "mask_full", entry, backbones)))
    assert len(lines) == 18 and not any(line.is_miss for line in lines), table(lines)
