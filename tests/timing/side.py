"""Time one way of editing in a process of its own: `python -m tests.timing.side '{"side": "fused", ...}'`.

The settings are those of `SideSettings` as JSON; what was measured is printed as one line of JSON, a `SideFigures`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tests.timing.process import cpu_seconds, forget_peak, peak_mb, resident_mb
from tests.timing.sides import drawn_requests, load_editor, prepare_side
from vimaedit.config import EditConfig, ModelConfig
from vimaedit.models.files import resolve_model


@dataclass(frozen=True, kw_only=True)
class SideSettings:
    """What to run: `batch` edits of `steps` steps in the way `side`; results go to `save` (.npz) where it is named."""

    side: str
    model: str
    steps: int
    batch: int
    threads: int
    save: str | None = None


@dataclass(frozen=True, kw_only=True)
class SideFigures:
    """What a side took to denoise. `memory_mb`: the most it held above `loaded_mb`, what was held once all models were loaded."""

    cpu_s: float
    wall_s: float
    memory_mb: float
    loaded_mb: float


def measure_side(settings: SideSettings) -> SideFigures:
    """Load, warm up, run and save."""
    torch.set_num_threads(settings.threads)
    config = EditConfig(steps=settings.steps, blend="given")
    editor = load_editor(settings.model, config, "cpu", "float32")
    folder = resolve_model(ModelConfig(model=settings.model)).diffusers.parent
    edits = [editor.prepare(each) for each in drawn_requests(settings.batch, editor.canvas.size)]
    batch = editor.encode(edits)
    run = prepare_side(settings.side, editor, edits, batch, folder)
    loaded = resident_mb()
    forget_peak()
    cpu, wall = cpu_seconds(), time.perf_counter()
    outcome = run()
    figures = SideFigures(
        cpu_s=cpu_seconds() - cpu,
        wall_s=time.perf_counter() - wall,
        memory_mb=peak_mb() - loaded,
        loaded_mb=loaded,
    )
    if settings.save is not None:
        arrays = {"latents": outcome.latents} | ({} if outcome.masks is None else {"masks": outcome.masks})
        np.savez(Path(settings.save), allow_pickle=False, **arrays)
    return figures


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(measure_side(SideSettings(**json.loads(sys.argv[1]))))))
