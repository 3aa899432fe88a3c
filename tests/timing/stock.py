"""Whole edits by the engine beside calls of the library's own pipeline, on the CPU: time and memory, every ratio within one run.

`python -m tests.timing.stock key=value ...`
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipelines.tables import Table
from tests.timing.engine import run_python
from tests.timing.report import processor, run_suite, say
from vimaedit.config import check_choice, check_range, check_types

ENGINE, CALLS = "engine", "calls"
NOTE = (
    "Whole edits: texts, encoding, denoising, decoding. engine: `vimaedit` without image guidance, three rows a step, grounded, the source "
    "kept. calls: the image-to-image pipeline of diffusers, one call after the other, two rows a step (FLUX: one), no source, no mask. "
    "Memory: the most held above the loaded models, after one edit that warms up."
)


@dataclass(frozen=True, kw_only=True)
class StockBenchConfig:
    """CPU time and memory of batched edits beside a loop of calls of the library's pipeline."""

    output: str = ""  # Markdown file to whose end the tables are added
    models: list[str] = field(default_factory=lambda: ["random-xl", "random-sd3"])  # bundle folders or built-in names
    steps: int = 10  # denoising steps of both
    edits: int = 8  # done by both in a round
    batch: list[int] = field(default_factory=lambda: [8, 1])  # edits that the engine does at once
    threads: int = 1  # CPU threads of both
    rounds: int = 3  # times that all run, in turn; medians count

    def __post_init__(self) -> None:
        check_types(self)
        for name, low, high in (("steps", 1, 999), ("edits", 1, 1000), ("threads", 1, 1000), ("rounds", 1, 100)):
            check_range(name, getattr(self, name), low, high)
        for batch in self.batch:
            check_range("batch", batch, 1, self.edits)


def measure(config: StockBenchConfig) -> Iterator[Table]:
    """Measure and yield a table for each model.

    Raises: ConfigError for a model that cannot be loaded.
    """
    ways = [*((ENGINE, batch) for batch in config.batch), (CALLS, 1)]
    for model in config.models:
        runs: dict[tuple[str, int], list[dict[str, float]]] = {way: [] for way in ways}
        for number in range(config.rounds):
            for way, batch in ways:
                say(f"{model}, round {number + 1} of {config.rounds}: {way}, {batch} at once")
                settings = dataclasses.asdict(config) | {"model": model, "way": way, "batch": batch}
                runs[way, batch].append(
                    json.loads(run_python(["-m", "tests.timing.stock", json.dumps(settings)], config.threads))
                )
        yield make_table(config, model, runs)


def make_table(config: StockBenchConfig, model: str, runs: dict[tuple[str, int], list[dict[str, float]]]) -> Table:
    """Lay out the medians, and how many times as much a loop of calls takes as each of them."""
    middle = {
        way: {name: statistics.median(each[name] for each in own) for name in ("cpu_s", "memory_mb")}
        for way, own in runs.items()
    }
    stock = middle[CALLS, 1]
    return Table(
        title=f"Whole edits, {config.steps} steps, model {model}",
        columns=(
            "way",
            "at once",
            "CPU s/edit",
            "lowest to highest",
            "memory MB",
            "CPU of calls over it",
            "memory of calls over it",
        ),
        rows=tuple(
            (
                way,
                str(batch),
                f"{own['cpu_s']:.3f}",
                f"{min(each['cpu_s'] for each in runs[way, batch]):.3f} to {max(each['cpu_s'] for each in runs[way, batch]):.3f}",
                f"{own['memory_mb']:.0f}",
                f"{stock['cpu_s'] / own['cpu_s']:.2f}x",
                f"{stock['memory_mb'] / own['memory_mb']:.2f}x",
            )
            for (way, batch), own in middle.items()
        ),
        note=f"{processor()}, {config.threads} threads. Median of {config.rounds} rounds. {NOTE}",
    )


def measure_way(settings: dict[str, Any]) -> dict[str, float]:
    """Load, warm up and do the edits in one of the ways, in this process."""
    import torch

    from tests.timing.process import cpu_seconds, forget_peak, peak_mb, resident_mb

    check_choice("way", settings["way"], (ENGINE, CALLS))
    torch.set_num_threads(settings["threads"])
    run = prepare_way(settings)
    run(1)
    loaded = resident_mb()
    forget_peak()
    before = cpu_seconds()
    run(settings["edits"])
    return {"cpu_s": (cpu_seconds() - before) / settings["edits"], "memory_mb": peak_mb() - loaded}


def prepare_way(settings: dict[str, Any]) -> Callable[[int], None]:
    """Load a model and return what does so many edits of it."""
    import torch
    from diffusers import AutoPipelineForImage2Image
    from PIL import Image

    from tests.timing.sides import drawn_requests, load_editor
    from vimaedit.config import ModelConfig
    from vimaedit.models.files import model_facts, recipe_config, resolve_model

    config = dataclasses.replace(recipe_config(settings["model"]), steps=settings["steps"], blend="given", image_guidance=False)
    files = resolve_model(ModelConfig(model=settings["model"]), image_guidance=False)
    requests = drawn_requests(settings["edits"], model_facts(files).canvas_size)
    if settings["way"] == ENGINE:
        editor = load_editor(settings["model"], config, "cpu", "float32")

        def edit(count: int) -> None:
            for start in range(0, count, settings["batch"]):
                results = editor(requests[start : min(count, start + settings["batch"])])
                assert all(each is not None and each.image is not None for each in results), results

        return edit
    pipe = AutoPipelineForImage2Image.from_pretrained(files.diffusers, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def call(count: int) -> None:
        for request in requests[:count]:
            pipe(
                prompt=request.target_prompt,
                image=Image.fromarray(request.image),
                strength=1.0,
                num_inference_steps=settings["steps"],
                guidance_scale=config.target_guidance,
                generator=torch.Generator().manual_seed(request.seed),
                height=request.image.shape[0],
                width=request.image.shape[1],
            )

    return call


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        print(json.dumps(measure_way(json.loads(sys.argv[1]))))
    else:
        sys.exit(run_suite("stock", StockBenchConfig, measure, sys.argv[1:]))
