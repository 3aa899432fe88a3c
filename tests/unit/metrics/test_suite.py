"""All metrics together: which columns have values, what an absent network costs, pictures of several sizes in one call."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vimaedit.config import ModelConfig
from vimaedit.metrics.background import background_metrics
from vimaedit.metrics.dino import KeyNetwork
from vimaedit.metrics.lpips import LpipsNetwork
from vimaedit.metrics.names import METRIC_GROUPS, METRICS, SEVEN
from vimaedit.metrics.samples import EditSample
from vimaedit.metrics.suite import MetricSuite, mask_agreement
from vimaedit.models.files import resolve_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Write small random networks and name them as options."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("weights")
    network = KeyNetwork(width=24, hidden=17, depth=2, patch=8, num_positions=785)
    tensors = {key: torch.randn_like(value) / 3 for key, value in network.state_dict().items()}
    torch.save(tensors, folder / "dino.pth")
    lpips = LpipsNetwork()
    torch.save({key: value for key, value in lpips.state_dict().items() if "features" in key}, folder / "squeezenet.pth")
    np.savez(folder / "heads.npz", lpips_heads=np.full(2240, 0.125, dtype=np.float32))
    clip = str(resolve_model(ModelConfig(model="random")).clip)
    names = {"dino": "dino.pth", "lpips": "squeezenet.pth", "lpips_heads": "heads.npz"}
    return {"scoring_clip": clip, **{option: str(folder / name) for option, name in names.items()}}


def sample(seed: int, shape: tuple[int, int] = (61, 67)) -> EditSample:
    rng = np.random.default_rng(seed)
    source, edited, target = (rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for _ in range(3))
    mask, found = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    mask[10:30, 5:40], found[10:30, 20:50] = True, True
    prompts = {"source_prompt": "two moons", "target_prompt": "a red star"}
    return EditSample(source=source, edited=edited, target=target, reference_mask=mask, edit_mask=found, **prompts)


def test_every_group_and_its_columns_are_known() -> None:
    assert {metric.group for metric in METRICS.values()} == set(METRIC_GROUPS)
    assert set(SEVEN) < set(METRICS) and len(SEVEN) == 7


def test_a_batch_of_two_sizes_has_the_values_of_single_edits(weights: dict[str, str]) -> None:
    suite = MetricSuite(METRIC_GROUPS, **weights)
    assert suite.absent == {}
    samples = [sample(0), sample(1, (71, 53)), sample(2)]
    together = suite(samples)
    for values, each in zip(together, samples, strict=True):
        (alone,) = suite([each])
        assert values.keys() == set(METRICS)
        present = {name: value for name, value in alone.items() if value is not None}
        assert {name: values[name] for name in present} == pytest.approx(present, rel=1e-4, nan_ok=True)
        plain = background_metrics(each.source, each.edited, each.reference_mask)
        assert values["background_psnr"] == pytest.approx(plain.background_psnr)
        assert values["background_ssim"] == pytest.approx(plain.background_ssim)
        assert values["mask_fraction"] == plain.mask_fraction and values["changed_fraction"] == plain.changed_fraction
        to_target = np.square(each.edited / 255 - each.target / 255).mean()
        assert values["target_mse"] == pytest.approx(to_target) and values["target_lpips"] > values["background_lpips"] > 0
        assert values["structure_distance"] > 0
        # 20 columns of 35 and of 30 are in both.
        assert (values["mask_iou"], values["mask_precision"], values["mask_recall"]) == pytest.approx((4 / 9, 2 / 3, 4 / 7))
        assert values["scene_success"] is None  # of drawn scenes only, and not by pixels alone
    assert together[0] != together[2]


def test_what_does_not_apply_has_no_value_and_what_is_empty_is_nan(weights: dict[str, str]) -> None:
    suite = MetricSuite(METRIC_GROUPS, **weights)
    bare = dataclasses.replace(sample(3), reference_mask=None, edit_mask=None, target=None)
    full = dataclasses.replace(
        sample(3), reference_mask=np.ones((61, 67), dtype=bool), edit_mask=np.zeros((61, 67), dtype=bool)
    )
    none = dataclasses.replace(sample(3), reference_mask=np.zeros((61, 67), dtype=bool))
    same = dataclasses.replace(sample(3), edited=sample(3).source)
    values = suite([bare, full, none, same])
    missing = {name for name, value in values[0].items() if value is None}
    assert missing == {name for name in METRICS if name.startswith(("background", "mask", "target", "scene", "judge"))} | {
        "clip_edited",
        "shift_px",
    }
    nan = {name for name, value in values[1].items() if value is not None and math.isnan(value)}
    assert nan == {name for name in METRICS if name.startswith("background")} | {"mask_precision"}
    assert math.isnan(values[2]["clip_edited"]) and math.isnan(values[2]["mask_recall"])
    assert values[2]["background_psnr"] < 15
    assert values[3]["background_psnr"] == math.inf and values[3]["background_lpips"] == 0.0
    assert values[3]["structure_distance"] == 0.0 and values[3]["changed_fraction"] == 0.0


def test_an_absent_network_costs_its_metrics_only(weights: dict[str, str], tmp_path: Path) -> None:
    suite = MetricSuite(METRIC_GROUPS, **{**weights, "dino": str(tmp_path / "none"), "lpips": None})
    assert set(suite.absent) == {"structure_distance", "background_lpips", "target_lpips", "lpips_whole"}
    assert suite.absent["structure_distance"].startswith(f"dino: got '{tmp_path / 'none'}', which is no file or folder here")
    assert suite.absent["target_lpips"] == "lpips: got nothing; allowed: a file, folder or hub id"
    (values,) = suite([sample(4)])
    assert {name for name, value in values.items() if value is None} == set(suite.absent) | {
        *(
            "shift_px",
            *(name for name in METRICS if name.startswith(("scene", "judge"))),
        )  # unrelated pictures say nothing of a shift
    }


def test_only_chosen_metrics_are_measured_and_loaded(tmp_path: Path) -> None:
    suite = MetricSuite(["mask", "target"], scoring_clip=str(tmp_path / "none"))
    assert suite.absent == {}
    (values,) = suite([sample(5)])
    assert set(values) == {name for name, metric in METRICS.items() if metric.group in ("mask", "target")}


def test_masks_are_not_compared_on_a_border_that_is_there_by_rule() -> None:
    wanted = np.zeros((13, 17), dtype=bool)
    wanted[[0, -1]] = wanted[:, [0, -1]] = True
    wanted[3:5, 4:8] = True
    found = np.zeros((13, 17), dtype=bool)
    found[3:5, 4:8] = True
    assert mask_agreement(found, wanted, framed=True) == {"mask_iou": 1.0, "mask_precision": 1.0, "mask_recall": 1.0}
    assert mask_agreement(found, wanted)["mask_iou"] == pytest.approx(8 / (8 + 2 * 13 + 2 * 15))
