"""The record of a training: which stages, how long, and their curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vimaedit.miniature.training.options import STAGES

_POINTS = 8  # of a curve
# Of a curve's line; the rest are figures of the averaged weights.
_BESIDE = ("minutes", "step", "samples", "learning_rate", "steps_per_s", "loss")


def write_record(checkpoints: Path, path: Path) -> None:
    """Write what the stages' curves tell as Markdown."""
    curves = {name: _read(checkpoints / f"{name}.jsonl") for name in STAGES if (checkpoints / f"{name}.jsonl").is_file()}
    lines = [
        "# How these weights were trained",
        "",
        "Minutes are those of the stage; on a CPU stages run side by side.",
        "",
        "| stage | minutes | steps | samples | learning rate |",
        "|---|---|---|---|---|",
    ]
    for name, curve in curves.items():
        replicas = [curve, *(_read(each) for each in sorted(checkpoints.glob(f"{name}-*.jsonl")))]
        steps = " + ".join(str(each[-1]["step"]) for each in replicas)
        samples = sum(each[-1]["samples"] for each in replicas)
        lines.append(f"| {name} | {curve[-1]['minutes']:.1f} | {steps} | {samples} | {curve[-1]['learning_rate']:g} |")
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
