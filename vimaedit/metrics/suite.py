"""All metrics of edits at once: the networks loaded once, pictures of one size together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vimaedit.errors import ConfigError, WrongWeights
from vimaedit.metrics.background import CHANGED_LEVEL
from vimaedit.metrics.clip import ClipScore
from vimaedit.metrics.dino import KeyNetwork, load_dino, structure_distance
from vimaedit.metrics.lpips import LpipsNetwork, load_lpips, lpips_distance
from vimaedit.metrics.names import BACKBONES, METRICS
from vimaedit.metrics.pixels import (
    mean_squared_error,
    peak_signal_to_noise,
    structural_similarity,
    to_pictures,
    to_regions,
)
from vimaedit.metrics.samples import EditSample
from vimaedit.metrics.shift import shift_px
from vimaedit.types import BoolArray, UInt8Array

Values = dict[str, float | None]


class MetricSuite:
    """The chosen metrics with their networks, on one device.

    `absent`: column -> why its network could not be had; such metrics have no values. Weights that are there but wrong raise
    `WrongWeights`.
    """

    def __init__(
        self,
        groups: Sequence[str],
        *,
        scoring_clip: str | None = None,
        dino: str | None = None,
        lpips: str | None = None,
        lpips_heads: str | None = None,
        device: str = "cpu",
    ) -> None:
        self.groups = frozenset(groups)
        self.device = device
        self.absent: dict[str, str] = {}
        self.clip: ClipScore | None = self._load("clip", scoring_clip, lambda name: ClipScore(name, device))
        self.dino: KeyNetwork | None = self._load("structure", dino, lambda name: load_dino(name, device))
        self.lpips: LpipsNetwork | None = self._load("lpips", lpips, lambda name: load_lpips(name, lpips_heads, device))

    def _load(self, group: str, name: str | None, load: Callable[[str], Any]) -> Any:
        if group not in self.groups:
            return None
        option = BACKBONES[group]
        try:
            if name is None:
                raise ConfigError(f"{option}: got nothing; allowed: a file, folder or hub id")
            return load(name)
        except WrongWeights:
            raise
        except ConfigError as error:
            self.absent |= {column: str(error) for column, metric in METRICS.items() if metric.backbone == option}
            return None

    def __call__(self, samples: Sequence[EditSample]) -> list[Values]:
        """Measure edits, one after another as given.

        Every column of the chosen groups has a value: None where it does not apply (no mask, no target) or its network is
        absent; NaN where a region is empty; inf for the PSNR of equal pictures.
        """
        values: list[Values] = [
            {name: None for name, metric in METRICS.items() if metric.group in self.groups} for _ in samples
        ]
        # TensorFloat-32 would cost LPIPS three digits.
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            for members in _same_shape([sample.edited.shape for sample in samples]):
                self._measure([samples[n] for n in members], [values[n] for n in members])
        return values

    def _measure(self, samples: Sequence[EditSample], values: Sequence[Values]) -> None:
        """Measure edits of one shape into `values`."""
        source = to_pictures([sample.source for sample in samples], self.device)
        edited = to_pictures([sample.edited for sample in samples], self.device)
        if self.dino is not None:
            _put(values, "structure_distance", structure_distance(self.dino, source, edited))
        if self.clip is not None:
            pictures, originals = [sample.edited for sample in samples], [sample.source for sample in samples]
            _put(values, "clip_whole", self.clip(pictures, [sample.target_prompt for sample in samples]))
            _put(values, "clip_source", self.clip(originals, [sample.source_prompt for sample in samples]))
        if self.lpips is not None:
            _put(values, "lpips_whole", lpips_distance(self.lpips, source, edited))
        if "background" in self.groups:
            changed = ((source.int() - edited.int()).abs() > CHANGED_LEVEL).any(1)
            _put(values, "changed_fraction", changed.flatten(1).double().mean(1))
            for row, sample in zip(values, samples, strict=True):
                row["shift_px"] = shift_px(sample.source, sample.edited)
        masked = [n for n, sample in enumerate(samples) if sample.reference_mask is not None]
        if masked:
            chosen = [samples[n] for n in masked]
            self._measure_masked(chosen, [values[n] for n in masked], source[masked], edited[masked])
        targeted = [n for n, sample in enumerate(samples) if sample.target is not None]
        if targeted:
            targets = to_pictures([picture for sample in samples if (picture := sample.target) is not None], self.device)
            self._compare(edited[targeted], targets, None, "target", [values[n] for n in targeted])

    def _measure_masked(self, samples: Sequence[EditSample], values: Sequence[Values], source: Tensor, edited: Tensor) -> None:
        masks = [mask for sample in samples if (mask := sample.reference_mask) is not None]
        self._compare(source, edited, ~to_regions(masks, self.device), "background", values)
        if self.clip is not None:
            pictures, prompts = [sample.edited for sample in samples], [sample.target_prompt for sample in samples]
            _put(values, "clip_edited", clip_of_part(self.clip, pictures, masks, prompts))
        if "mask" in self.groups:
            for sample, mask, row in zip(samples, masks, values, strict=True):
                row["mask_fraction"] = float(mask.mean())
                if sample.edit_mask is not None:
                    row |= mask_agreement(sample.edit_mask, mask, framed=sample.framed)

    def _compare(self, first: Tensor, second: Tensor, region: Tensor | None, what: str, values: Sequence[Values]) -> None:
        """Put the pixel distances and LPIPS of two pictures under names that begin with `what`."""
        if what in self.groups:
            mse = mean_squared_error(first, second, region)
            _put(values, f"{what}_mse", mse)
            _put(values, f"{what}_psnr", peak_signal_to_noise(mse))
            _put(values, f"{what}_ssim", structural_similarity(first, second, region))
        if self.lpips is not None:
            _put(values, f"{what}_lpips", lpips_distance(self.lpips, first, second, region))


def clip_of_part(clip: ClipScore, pictures: Sequence[UInt8Array], masks: Sequence[BoolArray], texts: Sequence[str]) -> Tensor:
    """Return the CLIP score of the masked part of pictures, black elsewhere, (B,) float64; NaN where a mask is empty."""
    parts = [picture * mask[..., None] for picture, mask in zip(pictures, masks, strict=True)]
    scores = clip(parts, texts)
    return torch.where(torch.tensor([bool(mask.any()) for mask in masks], device=scores.device), scores, torch.nan)


def mask_agreement(found: BoolArray, wanted: BoolArray, *, framed: bool = False) -> Values:
    """Compare an edit mask with the true one, pixel by pixel: IoU, precision and recall, NaN for shares of nothing.

    `framed`: the one-pixel border is left out.
    """
    if framed:
        found, wanted = found[1:-1, 1:-1], wanted[1:-1, 1:-1]
    both = found & wanted
    return {
        "mask_iou": _share(both, found | wanted),
        "mask_precision": _share(both, found),
        "mask_recall": _share(both, wanted),
    }


def _share(part: BoolArray, whole: BoolArray) -> float:
    return int(part.sum()) / int(whole.sum()) if whole.any() else math.nan


def _put(values: Sequence[Values], name: str, found: Tensor) -> None:
    for row, value in zip(values, found.tolist(), strict=True):
        row[name] = value


def _same_shape(shapes: Iterable[tuple[int, ...]]) -> list[list[int]]:
    """Group positions by shape, in the order in which shapes first occur."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(position)
    return list(groups.values())
