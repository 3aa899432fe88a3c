"""What an accelerator makes of the UNet, of whole edits and of the autoencoder, beside its measured ceilings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.store.location import check_writable, locate
from pipelines.tables import Table
from pipelines.timing.bench_output import write_numbers
from pipelines.timing.engine_bench import environment, refusal, run_python
from vimaedit.config import check_choice, check_range, check_types

MODELS = ("sd15", "small-sd15", "random")  # layouts with drawn weights; any other name is a bundle folder
BACKENDS = ("flash", "cudnn", "efficient", "math")
CONTROLS = ("stock", "maps")
COMPILERS = ("inductor", "eager")


@dataclass(frozen=True, kw_only=True)
class GpuBenchConfig:
    """The suite `gpu` of `jobs.bench`: ceilings, UNet rows, whole edits, autoencoder and memory on one device."""

    suite: str = "gpu"  # this one
    output: str | None = None  # folder, local or any fsspec URL; gets gpu.json and gpu.md
    model: str = "sd15"  # sd15: drawn weights at full size; small-sd15, random: smaller ones; or a bundle folder
    device: str = "cuda"  # cuda, cuda:NUMBER, or cpu to see that it runs
    dtype: str = "float16"  # of the networks
    steps: int = 50  # denoising steps of whole edits
    rows: list[int] = field(default_factory=lambda: [3, 6, 12, 24, 48, 96])  # UNet rows of a forward pass
    backends: list[str] = field(default_factory=lambda: ["flash", "cudnn", "efficient"])  # of attention
    compiled_rows: list[int] = field(default_factory=lambda: [48])  # rows for which the UNet is compiled; each takes minutes
    batches: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])  # edits at once
    compiled_batches: list[int] = field(default_factory=lambda: [16])  # edits at once, compiled; each takes minutes
    compiler: str = "inductor"  # of those; eager: torch only traces them, to see on a CPU that it can
    vae_batches: list[int] = field(default_factory=lambda: [1, 4, 8, 16])  # pictures at once
    controls: list[str] = field(default_factory=lambda: list(CONTROLS))  # other ways to edit; maps needs a checkout
    matrix: int = 8192  # side of the matrices of the ceiling
    copy_mb: int = 4096  # size of the copy of the ceiling
    repeats: int = 10  # of every short piece of work; medians count

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("dtype", self.dtype, ("float16", "bfloat16", "float32"))
        for name, low, high in (("steps", 1, 999), ("matrix", 8, 65536), ("copy_mb", 1, 65536), ("repeats", 1, 1000)):
            check_range(name, getattr(self, name), low, high)
        for name in ("rows", "compiled_rows", "batches", "compiled_batches", "vae_batches"):
            for each in getattr(self, name):
                check_range(name, each, 1, 4096)
        check_choice("compiler", self.compiler, COMPILERS)
        for name, allowed in (("backends", BACKENDS), ("controls", CONTROLS)):
            for each in getattr(self, name):
                check_choice(name, each, allowed)


def run_gpu_bench(config: GpuBenchConfig, show: Callable[[str], None]) -> tuple[dict[str, Any], list[Table]]:
    """Measure, write what `output` asks for, and return the figures and their tables. `show` is told each figure as it comes.

    Raises: ConfigError for a device that is not there or a model that cannot be loaded. RuntimeError if measuring broke off; what
    had been found by then is written.
    """
    output = None if config.output is None else locate(config.output)
    if output is not None:
        check_writable(output)
    figures: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        model = config.model
        if model in MODELS:
            show("drawing the model's weights")
            model = str(Path(folder) / model)
            run_python(["-m", "vimaedit.performance.model", config.model, model])
        settings = {name: value for name, value in vars(config).items() if name not in ("suite", "output")}
        try:
            for figure in _stream({**settings, "model": model}):
                figures.append(figure)
                show(" ".join(f"{name}={_short(value)}" for name, value in figure.items()))
        finally:
            numbers = {"environment": environment(), "settings": settings, "figures": figures}
            tables = make_tables(figures)
            if output is not None:
                write_numbers(output, "gpu", numbers, tables)
    return numbers, tables


def make_tables(figures: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Lay out the figures, a table for each section that has any."""
    facts = {each["section"]: each for each in figures if each["section"] in ("environment", "ceilings", "row")}
    note = ""
    if len(facts) == 3:
        note = (
            f"{facts['environment']['device']}, {facts['environment']['dtype']}, torch {facts['environment']['torch']}. Measured "
            f"ceilings: {facts['ceilings']['matmul_tflops']:.1f} TFLOP/s, {facts['ceilings']['copy_tb_s']:.2f} TB/s. One row: "
            f"{facts['row']['gflop']:.1f} GFLOP, {facts['row']['parameters_m']:.1f} M parameters. MFU: share of the measured ceiling."
        )
    shapes = {
        "rows": ("UNet forward passes", ("mode", "layout", "backend", "rows"), ("ms_per_row", "tflops", "mfu", "peak_gb")),
        "edits": (
            "Whole edits, encoded to denoised",
            ("side", "mode", "at_once"),
            ("s_per_edit", "edits_per_s", "mfu", "peak_gb"),
        ),
        "vae": ("Autoencoder", ("way", "at_once"), ("ms_per_picture", "peak_gb")),
        "memory": ("Memory of edits", (), ("gb_per_further_edit",)),
        "ratios": ("How much faster the engine is", ("mode", "against"), ("speed",)),
    }
    every = [*figures, *derived(figures)]
    tables = []
    for section, (title, keys, values) in shapes.items():
        own = [each for each in every if each["section"] == section]
        cells = tuple((*(str(each[key]) for key in keys), *(_short(each.get(value)) for value in values)) for each in own)
        if cells:
            tables.append(Table(title=title, columns=(*keys, *values), rows=cells, note=note))
            note = ""
    return tables


def derived(figures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what follows from the figures of whole edits: memory for each further edit, and the speed beside other ways."""
    edits = [each for each in figures if each["section"] == "edits" and each.get("s_per_edit") is not None]
    fused = [each for each in edits if each["side"] == "fused"]
    found: list[dict[str, Any]] = []
    held = [each for each in fused if each["peak_gb"] is not None and each["mode"] == "eager"]
    if len(held) > 1:
        first, last = held[0], held[-1]
        slope = (last["peak_gb"] - first["peak_gb"]) / (last["at_once"] - first["at_once"])
        found.append({"section": "memory", "gb_per_further_edit": slope})
    for mode in dict.fromkeys(each["mode"] for each in fused):
        best = max(each["edits_per_s"] for each in fused if each["mode"] == mode)
        others = [each for each in edits if each["side"] != "fused"]
        found += [
            {"section": "ratios", "mode": mode, "against": each["side"], "speed": best / each["edits_per_s"]} for each in others
        ]
    return found


def _stream(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Run the measuring program and yield its lines as they come.

    Raises: RuntimeError with what it said, if it broke off.
    """
    command = [sys.executable, "-m", "vimaedit.performance.gpu", json.dumps(settings)]
    with (
        TemporaryDirectory() as folder,
        (Path(folder) / "errors").open("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(os.environ)) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
        if process.wait():
            errors.seek(0)
            said = errors.read()
            raise refusal(said) or RuntimeError(f"measuring broke off: {said.strip()[-2000:]}")


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
