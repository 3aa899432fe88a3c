"""The record of a training: which stages, how long, and their curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vimaedit.miniature.training import adapter, consistency, contrastive, decoder, denoiser
from vimaedit.miniature.training.stages import LEARNING_RATES, SHARES

_SAMPLES = {  # per step
    "denoiser": denoiser.BATCH_SIZE,
    "decoder": decoder.BATCH_SIZE,
    "clip": 2 * contrastive.EDITS,
    "scoring_clip": 2 * contrastive.EDITS,
    "ip_adapter": adapter.BATCH_SIZE,
    "consistency": consistency.BATCH_SIZE,
}
_POINTS = 8  # of a curve
_BESIDE = ("minutes", "step", "steps_per_s", "loss")  # of a curve's line; the rest are figures of the averaged weights


def write_record(checkpoints: Path, path: Path) -> None:
    """Write what the stages' curves tell as Markdown."""
    curves = {name: _read(checkpoints / f"{name}.jsonl") for name in SHARES}
    lines = [
        "# How these weights were trained",
        "",
        "Written by `jobs.train_miniature`. Minutes are those of the stage; stages run side by side on a CPU.",
        "",
        "| stage | minutes | steps | samples | learning rate |",
        "|---|---|---|---|---|",
    ]
    for name, curve in curves.items():
        steps = [_read(path)[-1]["step"] for path in sorted(checkpoints.glob(f"{name}*.jsonl"))]  # of all replicas
        samples = sum(steps) * _SAMPLES[name]
        shown = " + ".join(str(count) for count in reversed(steps))
        lines.append(f"| {name} | {curve[-1]['minutes']:.1f} | {shown} | {samples} | {LEARNING_RATES[name]:g} |")
    for name, curve in curves.items():
        figures = [key for key in curve[-1] if key not in _BESIDE]
        lines += ["", f"## {name}", "", f"| minutes | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
        for point in _spread(curve):
            lines.append(f"| {point['minutes']:.1f} | {' | '.join(f'{point[key]:g}' for key in figures)} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _spread(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pick points of a curve at even distances, its last among them."""
    count = min(_POINTS, len(curve))
    return [curve[(n + 1) * len(curve) // count - 1] for n in range(count)]
