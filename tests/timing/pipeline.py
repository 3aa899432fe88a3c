"""What the pipeline costs beside the editing itself: rows per second through Ray against a plain loop, start and end, memory.

`python -m tests.timing.pipeline key=value ...`
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.output.config import IMAGE_FORMATS
from pipelines.tables import Table
from tests.timing.engine import run_python
from tests.timing.process import MemorySample, growth_mb
from tests.timing.report import processor, run_suite, say
from vimaedit.config import check_choice, check_range, check_types
from vimaedit.errors import ConfigError

SLEEPING_MODEL = "random"  # whose sizes the sleeping editor's records have
MODEL_BATCH = 4
GOALS = {1: 0.97, 2: 0.96, 4: 0.95}  # of the plain loop's rate, by actors
GROWTH_GOAL_MB = 10.0  # for 1000 rows
MEMORY_COLUMNS = {"driver_mb": "driver", "actors_mb": "editing actor", "workers_mb": "other workers"}


@dataclass(frozen=True, kw_only=True)
class PipelineBenchConfig:
    """Editing runs with an editor that sleeps, so that what is left is the pipeline's own time."""

    output: str = ""  # Markdown file to whose end the tables are added
    actors: list[int] = field(default_factory=lambda: list(GOALS))  # how many sleep side by side, a run each
    rows: int = 160  # records for each actor
    batch: int = 16  # records of a batch
    seconds: float = 3.0  # that a batch sleeps: a little less than a large GPU takes for 16 edits of 50 steps
    size: int = 512  # side of the pictures in px
    image_format: str = "jpeg"  # of what is written
    model: str = "miniature"  # that edits in a further run with one actor
    model_rows: int = 32  # records of that run; 0: none
    steps: int = 50  # denoising steps of that run
    memory_rows: int = 10_000  # records of a run without sleep whose memory is watched; 0: none

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("image_format", self.image_format, IMAGE_FORMATS)
        for each in self.actors:
            check_range("actors", each, 1, 1000)
        for name, low, high in (("rows", 1, 10**6), ("batch", 1, 4096), ("size", 64, 4096), ("steps", 1, 999)):
            check_range(name, getattr(self, name), low, high)
        for name in ("model_rows", "memory_rows"):
            check_range(name, getattr(self, name), 0, 10**7)
        check_range("seconds", self.seconds, 0.0, 3600.0)
        if not self.actors and not self.model_rows and not self.memory_rows:
            raise ConfigError("actors, model_rows, memory_rows: got nothing to measure; allowed: at least one of them")


def measure(config: PipelineBenchConfig) -> Iterator[Table]:
    """Measure and yield the tables.

    Raises: ConfigError for a model that cannot be loaded.
    """
    runs = []
    for run in plan_runs(config):
        say(f"{run['editor']}: {run['rows']} rows, {run['actors']} actors")
        settings = {name: value for name, value in run.items() if name != "editor"} | {"launched": time.time()}
        timing = json.loads(run_python(["-m", "tests.timing.pipeline_run", json.dumps(settings)], 1))
        runs.append({**run, **summarise(run, timing)})
    yield from make_tables(config, runs)


def plan_runs(config: PipelineBenchConfig) -> list[dict[str, Any]]:
    """List the runs, each with the settings of its timing program: weak scaling, a real model, memory."""
    sleeping = {
        "editor": f"sleeps {config.seconds:g} s a batch",
        **{"batch": config.batch, "size": config.size, "image_format": config.image_format},
        **{"model": SLEEPING_MODEL, "steps": config.steps, "seconds": config.seconds, "loop": True, "memory": False},
    }
    runs = [{**sleeping, "rows": count * config.rows, "actors": count} for count in config.actors]
    own: dict[str, Any]
    alone = {**sleeping, "actors": 1, "size": None, "image_format": "auto"}
    if config.model_rows:
        own = {"editor": f"{config.model}, {config.steps} steps", "model": config.model, "seconds": None}
        runs.append({**alone, **own, "rows": config.model_rows, "batch": MODEL_BATCH})
    if config.memory_rows:
        own = {"editor": "does not sleep", "seconds": 0.0, "loop": False, "memory": True}
        runs.append({**alone, **own, "rows": config.memory_rows})
    return runs


def summarise(run: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's table rows need: rates, their ratios to as many plain loops, phases and memory."""
    loop = timing["loop_rows_s"]
    rates = {name: timing[f"{name}_rows_s"] for name in ("steady", "whole")}
    samples = [MemorySample(**each) for each in timing["memory"]]
    return {
        "loop_rows_s": loop,
        **{f"{name}_rows_s": rate for name, rate in rates.items()},
        **{f"{name}_ratio": rate and rate / (run["actors"] * loop) for name, rate in rates.items() if loop is not None},
        "gap_s": timing["gap_s"],
        "phases": timing["phases"],
        "memory": {
            column: {"most_mb": max(getattr(each, column) for each in samples), "growth_mb": growth_mb(samples, column)}
            for column in (MEMORY_COLUMNS if samples else ())
        },
    }


def make_tables(config: PipelineBenchConfig, runs: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Lay out the numbers."""
    rates = [each for each in runs if each["loop_rows_s"] is not None]
    watched = [each for each in runs if each["memory"]]
    tables = [
        Table(
            title="Rows through the pipeline against the same actor in a plain loop",
            columns=("editor", "actors", "rows", "loop, rows/s", "ratio", "goal", "ratio with start and end", "gap, s"),
            rows=tuple(
                (
                    each["editor"],
                    *(str(each["actors"]), str(each["rows"]), f"{each['loop_rows_s']:.2f}"),
                    *(_number(each["steady_ratio"], 3), _goal(each), f"{each['whole_ratio']:.3f}", _number(each["gap_s"], 3)),
                )
                for each in rates
            ),
            note=f"{processor()}. Pictures of {config.size} px from JPEG to {config.image_format}; those of the model at its own size, "
            "as WebP. Ratio: the rate while all "
            "actors are at work, over as many plain loops; with start and end: from the first batch to the last row written. Gap: the "
            "median time that an actor waits between two batches.",
        ),
        Table(
            title="Where the time of a run goes, seconds",
            columns=("editor", "actors", *(runs[0]["phases"] if runs else ())),
            rows=tuple(
                (each["editor"], str(each["actors"]), *(f"{value:.1f}" for value in each["phases"].values())) for each in runs
            ),
            note="Until the program is imported, Ray runs, the plan is stored, the first actor is ready, it has its first batch, the last "
            "batch is done, its rows are written, the run has ended.",
        ),
        Table(
            title="Memory",
            columns=("process", "most, MB", "growth, MB for 1000 rows", "goal"),
            rows=tuple(
                (
                    MEMORY_COLUMNS[column],
                    *(f"{values['most_mb']:.0f}", _number(values["growth_mb"], 2), f"< {GROWTH_GOAL_MB:g}"),
                )
                for each in watched
                for column, values in each["memory"].items()
            ),
            note="" if not watched else f"{watched[0]['rows']} rows; what a process holds alone, without shared memory.",
        ),
    ]
    return [table for table in tables if table.rows]


def _goal(run: Mapping[str, Any]) -> str:
    return f">= {GOALS[run['actors']]}" if run["actors"] in GOALS else "-"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    sys.exit(run_suite("pipeline", PipelineBenchConfig, measure, sys.argv[1:]))
