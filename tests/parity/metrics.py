"""Hold the metrics to recorded values of the standard evaluation.

`python -m tests.parity.metrics --oracle DIR [--save OUT.json]` prints a table (pair, metric, recorded, got, difference) and exits
with 1 on a miss or a pair that cannot be read. Every value of the `official` block of `DIR/metrics/metrics.json` is compared.
`OUT.json` = {pair: {metric: value}}, with "nan" and "inf" as text.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vimaedit.metrics.clip import ClipScore
from vimaedit.metrics.dino import KeyNetwork, load_dino, structure_distance
from vimaedit.metrics.lpips import LpipsNetwork, load_lpips, lpips_distance
from vimaedit.metrics.pixels import mean_squared_error, peak_signal_to_noise, structural_similarity, to_pictures, to_regions
from vimaedit.metrics.suite import clip_of_part

# Absolute.
TOLERANCES = {"psnr": 1e-3, "mse": 1e-7, "lpips": 1e-5, "structure_distance": 1e-7, "clip_similarity": 2e-3, "ssim": 1e-5}
RECORDED_SSIM_TOLERANCE = 2e-4  # to the value recorded in float32, where none in float64 is
FLOAT64 = "same_formula_in_float64"


@dataclass(frozen=True, kw_only=True)
class Backbones:
    """The recorded networks, loaded by the project's own code."""

    clip: ClipScore
    dino: KeyNetwork
    lpips: LpipsNetwork


@dataclass(frozen=True, kw_only=True)
class Line:
    """One value held to its record. `recorded` and `got` may be nan or inf."""

    pair: str
    metric: str
    recorded: float
    got: float
    tolerance: float

    @property
    def difference(self) -> float:
        """0 for two values that are the same nan or inf; inf where only one is."""
        if math.isnan(self.recorded) or math.isnan(self.got):
            return 0.0 if math.isnan(self.recorded) and math.isnan(self.got) else math.inf
        return 0.0 if self.recorded == self.got else abs(self.recorded - self.got)

    @property
    def is_miss(self) -> bool:
        return not self.difference <= self.tolerance


def load_backbones(oracle: Path, dino: str = "dino_tiny_vitb8_layout.safetensors", device: str = "cpu") -> Backbones:
    """Load the networks of the recordings; `dino`: in which of its two formats."""
    folder = oracle / "metrics"
    return Backbones(
        clip=ClipScore(str(oracle / "models" / "clip"), device),
        dino=load_dino(str(folder / dino), device),
        lpips=load_lpips(
            str(folder / "squeezenet1_1_features_random_fp16.safetensors"), str(folder / "intermediates.npz"), device
        ),
    )


def measure(folder: Path, pair: str, entry: dict[str, Any], backbones: Backbones, device: str = "cpu") -> dict[str, float]:
    """Compute every metric of a pair under its recorded name."""
    source, target = (np.array(Image.open(folder / "images" / f"{pair}_{side}.png").convert("RGB")) for side in ("src", "tgt"))
    mask = np.array(Image.open(folder / "images" / f"{pair}_mask.png").convert("L")) != 0
    first, second = to_pictures([source], device), to_pictures([target], device)
    values: dict[str, float] = {}
    for suffix, region in (
        ("", None),
        ("_unedit_part", to_regions([~mask], device)),
        ("_edit_part", to_regions([mask], device)),
    ):
        mse = mean_squared_error(first, second, region)
        values[f"mse{suffix}"] = mse.item()
        values[f"psnr{suffix}"] = peak_signal_to_noise(mse).item()
        values[f"ssim{suffix}"] = structural_similarity(first, second, region).item()
        values[f"lpips{suffix}"] = lpips_distance(backbones.lpips, first, second, region).item()
        values[f"structure_distance{suffix}"] = structure_distance(backbones.dino, first, second, region).item()
    clip = backbones.clip
    values["clip_similarity_source_image"] = clip([source], [entry["prompt_src"]]).item()
    values["clip_similarity_target_image"] = clip([target], [entry["prompt_tar"]]).item()
    values["clip_similarity_target_image_edit_part"] = clip_of_part(clip, [target], [mask], [entry["prompt_tar"]]).item()
    return values


def compare(pair: str, entry: dict[str, Any], got: dict[str, float]) -> Iterator[Line]:
    """Hold the values of a pair to its record. A metric that is not computed here is a miss."""
    for metric, recorded in entry["official"].items():
        kind = next(kind for kind in TOLERANCES if metric.startswith(kind))
        wanted, tolerance = float(recorded), TOLERANCES[kind]
        if kind == "ssim" and math.isfinite(wanted):
            if metric in entry.get(FLOAT64, {}):
                wanted = float(entry[FLOAT64][metric])
            else:
                tolerance = RECORDED_SSIM_TOLERANCE
        yield Line(pair=pair, metric=metric, recorded=wanted, got=got.get(metric, math.nan), tolerance=tolerance)


def table(lines: Sequence[Line]) -> str:
    """Return the comparison as text."""
    rows = [f"{'pair':<20} {'metric':<40} {'recorded':>14} {'got':>14} {'difference':>10}"]
    for line in lines:
        values = f"{line.recorded:>14.8g} {line.got:>14.8g} {line.difference:>10.1e}"
        rows.append(f"{line.pair:<20} {line.metric:<40} {values}{'  MISS' if line.is_miss else ''}")
    return "\n".join(rows)


def main(words: Sequence[str] | None = None) -> int:
    """Compare all pairs; 1 on a miss or a pair that cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--oracle", type=Path, required=True)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    folder = arguments.oracle / "metrics"
    backbones = load_backbones(arguments.oracle, device=arguments.device)
    lines: list[Line] = []
    unreadable: list[str] = []
    saved: dict[str, dict[str, float | str]] = {}
    for pair, entry in json.loads((folder / "metrics.json").read_text())["pairs"].items():
        try:
            with torch.inference_mode():
                got = measure(folder, pair, entry, backbones, arguments.device)
            lines += compare(pair, entry, got)
        except Exception as error:  # one pair that cannot be judged must not hide the others
            unreadable.append(f"{pair}: {type(error).__name__}: {error}")
            continue
        saved[pair] = {name: value if math.isfinite(value) else str(value) for name, value in got.items()}
    print(table(lines))
    for text in unreadable:
        print(f"unreadable: {text}")
    misses = sum(line.is_miss for line in lines)
    print(f"{len(lines)} values of {len(saved)} pairs, {misses} misses, {len(unreadable)} pairs unreadable")
    if arguments.save is not None:
        arguments.save.write_text(json.dumps(saved, indent=2))
    return 1 if misses or unreadable or not lines else 0


if __name__ == "__main__":
    sys.exit(main())
