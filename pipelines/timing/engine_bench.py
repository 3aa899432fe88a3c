"""The engine against other ways to do its work, on the CPU: time and memory of each, every ratio measured in one run."""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import vimaedit
from pipelines.store.location import check_writable, locate
from pipelines.tables import Table
from pipelines.timing.bench_output import write_numbers
from vimaedit.config import check_choice, check_range, check_types
from vimaedit.errors import ConfigError

logger = logging.getLogger(__name__)

SMALL_SD15 = "small-sd15"
FUSED, STOCK, MAPS = "fused", "stock", "maps"
MEANINGS = {
    FUSED: "the engine, a batch at once",
    STOCK: "one edit after the other, four rows, the library's attention; grounds and couples nothing",
    MAPS: "one edit after the other, all attention maps kept; part of the tests, needs a checkout",
}
LATENT_TOLERANCE = 1e-5  # largest difference over largest value
LIBRARIES = ("torch", "diffusers", "transformers", "ray")


@dataclass(frozen=True, kw_only=True)
class EngineBenchConfig:
    """The suite `engine` of `jobs.bench`: CPU time and memory of denoising, the engine beside other ways to do its work."""

    suite: str = "engine"  # this one
    output: str | None = None  # folder, local or any fsspec URL; gets engine.json and engine.md
    model: str = SMALL_SD15  # bundle folder; small-sd15: drawn weights in the layout of SD 1.5, 512 px
    steps: int = 10  # denoising steps
    batch: int = 4  # edits that the engine does at once; the other ways do one
    threads: int = 1  # CPU threads of every side
    rounds: int = 3  # times that all sides run, in turn; medians count
    sides: list[str] = field(default_factory=lambda: list(MEANINGS))  # which ways to measure; fused is always one

    def __post_init__(self) -> None:
        check_types(self)
        if not self.model:
            raise ConfigError(f"model: got an empty string; allowed: {SMALL_SD15}, or a bundle folder")
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


def run_engine_bench(config: EngineBenchConfig, show: Callable[[str], None]) -> tuple[dict[str, Any], list[Table]]:
    """Measure, write what `output` asks for, and return the numbers and their tables. `show` is told what is done now.

    Raises: ConfigError for a model that cannot be loaded, or `maps` outside of a checkout.
    """
    output = None if config.output is None else locate(config.output)
    if output is not None:
        check_writable(output)
    with TemporaryDirectory() as folder:
        model = config.model
        if model == SMALL_SD15:
            show("drawing the model's weights")
            model = str(Path(folder) / SMALL_SD15)
            run_python(["-m", "vimaedit.performance.model", SMALL_SD15, model], config.threads)
        show("measuring what the machine can do")
        ceilings = json.loads(run_python(["-m", "vimaedit.performance.ceilings", str(config.threads)], config.threads))
        runs: list[SideRun] = []
        for number in range(config.rounds):
            for side, batch in plan_sides(config):
                show(f"round {number + 1} of {config.rounds}: {side}, {batch} at once")
                runs.append(_measure(config, model, side, batch, Path(folder)))
        same = _compare(Path(folder)) if MAPS in config.sides else None
    numbers = {
        "environment": environment(),
        "settings": {name: getattr(config, name) for name in ("model", "steps", "batch", "threads", "rounds", "sides")},
        "ceilings": ceilings,
        "sides": [summarise(runs, side, batch) for side, batch in plan_sides(config)],
        "same_results": same,
    }
    numbers["ratios"] = ratios(numbers["sides"])
    tables = make_tables(numbers)
    if output is not None:
        write_numbers(output, "engine", numbers, tables)
    return numbers, tables


def plan_sides(config: EngineBenchConfig) -> list[tuple[str, int]]:
    """List what runs in a round: each side with the number of edits it does in one process."""
    sides = [(FUSED, config.batch)] if config.batch > 1 else []
    return [*sides, (FUSED, 1), *[(side, 1) for side in config.sides if side != FUSED]]


def environment() -> dict[str, Any]:
    """Describe the machine and the libraries."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "vimaedit": vimaedit.__version__,
    }


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


def make_tables(numbers: Mapping[str, Any]) -> list[Table]:
    """Lay out the numbers."""
    facts, settings, ceilings = numbers["environment"], numbers["settings"], numbers["ceilings"]
    same = numbers["same_results"]
    note = f"{facts['processor']}, {settings['threads']} threads; torch {facts['torch']}, diffusers {facts['diffusers']}. Median of {settings['rounds']} rounds."
    tables = [
        Table(
            title=f"Denoising, {settings['steps']} steps, model {settings['model']}",
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
                for each in numbers["sides"]
            ),
            note=note
            + " Memory: the most held above the loaded models, all edits of the batch together. "
            + " ".join(f"{side}: {MEANINGS[side]}." for side in {each["side"]: None for each in numbers["sides"]}),
        ),
        Table(
            title="How much less the engine takes",
            columns=("against", f"CPU, {settings['batch']} at once", "CPU, one", "memory, one"),
            rows=tuple(
                (each["against"], *(f"{each[name]:.2f}x" for name in ("cpu", "cpu_one_edit", "memory_one_edit")))
                for each in numbers["ratios"]
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
    found = json.loads(run_python(["-m", "vimaedit.performance.side", json.dumps(settings)], config.threads))
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
            "latents_tolerance": LATENT_TOLERANCE,
            "mask_pixels": int((own["masks"] != reference["masks"]).sum()),
            "mask_pixels_of": int(reference["masks"].size),
        }


def run_python(words: Sequence[str], threads: int | None = None) -> str:
    """Run a program of the project in a process of its own, on so many threads, and return the last line it printed.

    Raises: ConfigError with what it said, if it refused.
    """
    own = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env={**os.environ, **own}, check=False)
    if done.returncode:
        raise refusal(done.stderr) or RuntimeError(f"{' '.join(words[:2])}: exit code {done.returncode}\n{done.stderr}")
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines else ""


def refusal(said: str) -> ConfigError | None:
    """Return the configuration error that ended a program of the project, by what it wrote last; None for any other end."""
    last = said.strip().splitlines()[-1] if said.strip() else ""
    kind, _, text = last.partition(": ")
    return ConfigError(text) if kind == f"{ConfigError.__module__}.{ConfigError.__name__}" else None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
