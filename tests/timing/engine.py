"""The engine against other ways to do its work, on the CPU: time and memory of each, every ratio measured in one run.

`python -m tests.timing.engine key=value ...`
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipelines.tables import Table
from tests.timing.machine import measure_ceilings
from tests.timing.report import processor, run_suite, say
from tests.timing.sides import SMALL_SD15, find_model
from vimaedit.config import check_choice, check_range, check_types
from vimaedit.errors import ConfigError

FUSED, STOCK, MAPS = "fused", "stock", "maps"
MEANINGS = {
    FUSED: "the engine, a batch at once",
    STOCK: "one edit after the other, four rows, the library's attention; grounds and couples nothing",
    MAPS: "one edit after the other, all attention maps kept",
}


@dataclass(frozen=True, kw_only=True)
class EngineBenchConfig:
    """CPU time and memory of denoising, the engine beside other ways to do its work."""

    output: str = ""  # Markdown file to whose end the tables are added
    model: str = SMALL_SD15.name  # bundle folder; small-sd15: drawn weights in the layout of SD 1.5, 512 px
    steps: int = 10  # denoising steps
    batch: int = 4  # edits that the engine does at once; the other ways do one
    threads: int = 1  # CPU threads of every side
    rounds: int = 3  # times that all sides run, in turn; medians count
    sides: list[str] = field(default_factory=lambda: list(MEANINGS))  # which ways to measure; fused is always one

    def __post_init__(self) -> None:
        check_types(self)
        if not self.model:
            raise ConfigError(f"model: got an empty string; allowed: {SMALL_SD15.name}, or a bundle folder")
        for name, low, high in (("steps", 1, 999), ("batch", 1, 1000), ("threads", 1, 1000), ("rounds", 1, 100)):
            check_range(name, getattr(self, name), low, high)
        for side in self.sides:
            check_choice("sides", side, MEANINGS)


@dataclass(frozen=True, kw_only=True)
class SideRun:
    """One run of one side: CPU and wall seconds per edit, memory in MB above the loaded models."""

    side: str
    batch: int
    cpu_s: float
    wall_s: float
    memory_mb: float


def measure(config: EngineBenchConfig) -> Iterator[Table]:
    """Measure and yield the tables.

    Raises: ConfigError for a model that cannot be loaded.
    """
    say("measuring what the machine can do")
    ceilings = measure_ceilings(config.threads)
    with TemporaryDirectory() as folder:
        say("looking for the model, or drawing its weights")
        model = str(find_model(config.model, Path(folder)))
        runs: list[SideRun] = []
        for number in range(config.rounds):
            for side, batch in plan_sides(config):
                say(f"round {number + 1} of {config.rounds}: {side}, {batch} at once")
                runs.append(_measure(config, model, side, batch, Path(folder)))
        same = _compare(Path(folder)) if MAPS in config.sides else None
    yield from make_tables(config, ceilings, [summarise(runs, *each) for each in plan_sides(config)], same)


def plan_sides(config: EngineBenchConfig) -> list[tuple[str, int]]:
    """List what runs in a round: each side with the number of edits it does in one process."""
    sides = [(FUSED, config.batch)] if config.batch > 1 else []
    return [*sides, (FUSED, 1), *[(side, 1) for side in config.sides if side != FUSED]]


def summarise(runs: Sequence[SideRun], side: str, batch: int) -> dict[str, Any]:
    """Take the medians over the rounds of one side, and the range of its CPU time."""
    own = [run for run in runs if (run.side, run.batch) == (side, batch)]
    cpu = [run.cpu_s for run in own]
    return {
        "side": side,
        "batch": batch,
        "cpu_s": statistics.median(cpu),
        "cpu_s_range": [min(cpu), max(cpu)],
        "wall_s": statistics.median(run.wall_s for run in own),
        "memory_mb": statistics.median(run.memory_mb for run in own),
    }


def ratios(sides: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Say how much less the engine takes than each of the other sides: CPU time at its batch, memory at one edit."""
    batched, alone = sides[0], next(each for each in sides if (each["side"], each["batch"]) == (FUSED, 1))
    return [
        {
            "against": each["side"],
            "cpu": each["cpu_s"] / batched["cpu_s"],
            "cpu_one_edit": each["cpu_s"] / alone["cpu_s"],
            "memory_one_edit": each["memory_mb"] / alone["memory_mb"],
        }
        for each in sides
        if each["side"] != FUSED
    ]


def make_tables(
    config: EngineBenchConfig, ceilings: Mapping[str, float], sides: Sequence[Mapping[str, Any]], same: Mapping[str, Any] | None
) -> list[Table]:
    """Lay out the numbers. `same`: how far the results of the engine and of all maps kept are apart."""
    note = f"{processor()}, {config.threads} threads. Median of {config.rounds} rounds."
    tables = [
        Table(
            title=f"Denoising, {config.steps} steps, model {config.model}",
            columns=("side", "at once", "CPU s/edit", "lowest to highest", "wall s/edit", "memory MB"),
            rows=tuple(
                (
                    each["side"],
                    str(each["batch"]),
                    f"{each['cpu_s']:.2f}",
                    f"{each['cpu_s_range'][0]:.2f} to {each['cpu_s_range'][1]:.2f}",
                    f"{each['wall_s']:.2f}",
                    f"{each['memory_mb']:.0f}",
                )
                for each in sides
            ),
            note=note
            + " Memory: the most held above the loaded models, all edits of the batch together. "
            + " ".join(f"{side}: {MEANINGS[side]}." for side in {each["side"]: None for each in sides}),
        ),
        Table(
            title="How much less the engine takes",
            columns=("against", f"CPU, {config.batch} at once", "CPU, one", "memory, one"),
            rows=tuple(
                (each["against"], *(f"{each[name]:.2f}x" for name in ("cpu", "cpu_one_edit", "memory_one_edit")))
                for each in ratios(sides)
            ),
            note=""
            if same is None
            else f"Against maps, one edit: latents differ by {same['latents']:.1e} of the largest, "
            f"{same['mask_pixels']} mask pixels of {same['mask_pixels_of']} (all steps).",
        ),
        Table(
            title="What the machine does",
            columns=("matrix product, float32, GFLOP/s", "copy, GB/s"),
            rows=((f"{ceilings['matmul_gflops']:.0f}", f"{ceilings['copy_gb_s']:.1f}"),),
            note="Reads and writes of the copy are both counted.",
        ),
    ]
    return [table for table in tables if table.rows]


def _measure(config: EngineBenchConfig, model: str, side: str, batch: int, folder: Path) -> SideRun:
    settings = {"side": side, "model": model, "steps": config.steps, "batch": batch, "threads": config.threads}
    if batch == 1:
        settings["save"] = str(folder / f"{side}.npz")
    found = json.loads(run_python(["-m", "tests.timing.side", json.dumps(settings)], config.threads))
    return SideRun(
        side=side,
        batch=batch,
        cpu_s=found["cpu_s"] / batch,
        wall_s=found["wall_s"] / batch,
        memory_mb=found["memory_mb"],
    )


def _compare(folder: Path) -> dict[str, Any]:
    with np.load(folder / f"{FUSED}.npz") as own, np.load(folder / f"{MAPS}.npz") as reference:
        largest = float(np.abs(reference["latents"]).max())
        return {
            "latents": float(np.abs(own["latents"] - reference["latents"]).max()) / largest,
            "mask_pixels": int((own["masks"] != reference["masks"]).sum()),
            "mask_pixels_of": int(reference["masks"].size),
        }


def run_python(words: Sequence[str], threads: int) -> str:
    """Run a program of the project in a process of its own, on so many threads, and return the last line it printed.

    Raises: ConfigError with what it said, if it refused.
    """
    own = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env={**os.environ, **own}, check=False)
    if done.returncode == 0:
        return done.stdout.strip().splitlines()[-1]
    kind, _, text = (done.stderr.strip().splitlines() or [""])[-1].partition(": ")
    if kind == f"{ConfigError.__module__}.{ConfigError.__name__}":
        raise ConfigError(text)
    raise RuntimeError(f"{' '.join(words[:2])}: exit code {done.returncode}\n{done.stderr}")


if __name__ == "__main__":
    sys.exit(run_suite("engine", EngineBenchConfig, measure, sys.argv[1:]))
