"""What an accelerator makes of the UNet, of whole edits and of the autoencoder, beside its measured ceilings.

`python -m tests.timing.gpu key=value ...`; needs torch, transformers and diffusers, no Ray.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.tables import Table
from tests.timing.gpu_figures import GpuBenchConfig, find_figures
from tests.timing.report import run_suite, say
from tests.timing.sides import find_model


def measure(config: GpuBenchConfig) -> Iterator[Table]:
    """Measure and yield the tables, of what had been found too where measuring breaks off.

    Raises: ConfigError for a device that is not there or a model that cannot be loaded.
    """
    figures: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        say("looking for the model, or drawing its weights")
        model = find_model(config.model, Path(folder))
        try:
            for figure in find_figures(config, model):
                figures.append(figure)
                say(" ".join(f"{name}={_short(value)}" for name, value in figure.items()))
        finally:
            yield from make_tables(figures)


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


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(run_suite("gpu", GpuBenchConfig, measure, sys.argv[1:]))
