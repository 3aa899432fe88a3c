"""Which metrics there are: their columns, how tables show them, and which of them need which weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of an edit.

    `scale`: tables show value x scale. `higher_is_better`: None where neither direction is good by itself. `group`: the name
    by which it is chosen. `backbone`: the option that names the weights it needs.
    """

    title: str
    group: str
    unit: str = ""
    scale: float = 1.0
    decimals: int = 2
    higher_is_better: bool | None = True
    backbone: str | None = None

    @property
    def heading(self) -> str:
        """What stands over a column of it."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def shown(self, value: float, sign: str = "") -> str:
        """Write a value, or with the sign `+` a difference, as tables show it."""
        return f"{value * self.scale:{sign}.{self.decimals}f}"


METRICS: dict[str, Metric] = {
    "structure_distance": Metric(
        title="Structure distance", group="structure", unit="x1e3", scale=1e3, higher_is_better=False, backbone="dino"
    ),
    "background_psnr": Metric(title="Background PSNR", group="background", unit="dB"),
    "background_lpips": Metric(
        title="Background LPIPS", group="lpips", unit="x1e3", scale=1e3, higher_is_better=False, backbone="lpips"
    ),
    "background_mse": Metric(title="Background MSE", group="background", unit="x1e4", scale=1e4, higher_is_better=False),
    "background_ssim": Metric(title="Background SSIM", group="background", unit="x1e2", scale=1e2),
    "clip_whole": Metric(title="CLIP whole", group="clip", backbone="scoring_clip"),
    "clip_edited": Metric(title="CLIP edited", group="clip", backbone="scoring_clip"),
    "clip_source": Metric(title="CLIP source", group="clip", higher_is_better=None, backbone="scoring_clip"),
    "mask_iou": Metric(title="Mask IoU", group="mask", decimals=3),
    "mask_precision": Metric(title="Mask precision", group="mask", decimals=3),
    "mask_recall": Metric(title="Mask recall", group="mask", decimals=3),
    "mask_fraction": Metric(title="Reference mask", group="mask", decimals=3, higher_is_better=None),
    "changed_fraction": Metric(title="Pixels changed", group="background", decimals=3, higher_is_better=None),
    "shift_px": Metric(title="Shift", group="background", unit="px", higher_is_better=False),
    "target_psnr": Metric(title="Target PSNR", group="target", unit="dB"),
    "target_mse": Metric(title="Target MSE", group="target", unit="x1e4", scale=1e4, higher_is_better=False),
    "target_ssim": Metric(title="Target SSIM", group="target", unit="x1e2", scale=1e2),
    "target_lpips": Metric(
        title="Target LPIPS", group="lpips", unit="x1e3", scale=1e3, higher_is_better=False, backbone="lpips"
    ),
    "lpips_whole": Metric(title="LPIPS whole", group="lpips", unit="x1e3", scale=1e3, higher_is_better=None, backbone="lpips"),
    "scene_success": Metric(title="Edit right, rest kept", group="scene", decimals=3),
    "scene_edited_right": Metric(title="Edit right", group="scene", decimals=3),
    "scene_others_unchanged": Metric(title="Rest kept", group="scene", decimals=3),
    "judge_semantics": Metric(title="Judge: done, rest kept", group="judge", unit="of 10"),
    "judge_quality": Metric(title="Judge: picture quality", group="judge", unit="of 10"),
    "judge_overall": Metric(title="Judge: overall", group="judge", unit="of 10"),
}
# The columns of PIE-Bench's tables, in their order.
SEVEN = (
    "structure_distance",
    "background_psnr",
    "background_lpips",
    "background_mse",
    "background_ssim",
    "clip_whole",
    "clip_edited",
)
METRIC_GROUPS = ("background", "lpips", "structure", "clip", "mask", "target", "scene", "judge")
# Of the other groups nothing is loaded.
BACKBONES = {"clip": "scoring_clip", "structure": "dino", "lpips": "lpips"}
RIDING_GROUPS = ("clip", "lpips", "structure")  # that an editing run measures too where it is asked to


def columns_of(groups: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of some groups, in their fixed order."""
    return tuple(name for name, metric in METRICS.items() if metric.group in groups)
