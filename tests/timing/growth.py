"""How the engine's CPU time and memory grow with rows, steps, batch, picture and edits of one picture; all in one process, in turn.

`python -m tests.timing.growth key=value ...`
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.tables import Table
from tests.timing.points import SAVINGS, Point, PointFigures, measure_points
from tests.timing.report import processor, run_suite, say
from vimaedit.config import check_range, check_types

EXPECTED = {
    "edits": "2.00 +- 0.05",
    "steps": "5.0 +- 0.15",
}  # of the laws that have one; that of shared sources follows from the rows
NOTES = {
    "edits": "Twice the edits, encoders and decoder included.",
    "steps": "The loop alone.",
    "batch": "The loop alone, CPU seconds of all edits together; memory above what was held before.",
    "size": "The loop alone. Ratio: to the first; convolutions grow with the area, self-attention with its square.",
    "targets": "The loop alone, by edits of one picture that share its source. Expected: by the rows that the UNet is asked for.",
    "targets, source without variance": "The same with source_variance=false, which lets all steps be shared.",
    "saving undone": "The loop alone, without one of the engine's savings. Expected: by the counted operations.",
}


@dataclass(frozen=True, kw_only=True)
class GrowthBenchConfig:
    """Ratios of CPU time and memory between more and less of the same work."""

    output: str = ""  # Markdown file to whose end the tables are added
    model: str = "random"  # built-in name or bundle folder
    steps: int = 10  # denoising steps, where steps do not vary
    edits: int = 8  # edits, where they do not vary
    threads: int = 1  # CPU threads
    rounds: int = 5  # times that everything runs, in turn; medians count

    def __post_init__(self) -> None:
        check_types(self)
        for name, low, high in (("steps", 1, 199), ("threads", 1, 1000), ("rounds", 1, 100)):
            check_range(name, getattr(self, name), low, high)
        check_range("edits", self.edits, 8, 4096)


def measure(config: GrowthBenchConfig) -> Iterator[Table]:
    """Measure and yield the tables.

    Raises: ConfigError for a model that cannot be loaded.
    """
    planned = list(plan_points(config))
    say(f"measuring {len(planned)} amounts of work, {config.rounds} times each")
    rounds = measure_points(config.model, [point for _, _, point in planned], config.rounds, config.threads)
    laws = [
        {"law": law, "value": value, **summarise([figures[place] for figures in rounds], law)}
        for place, (law, value, _) in enumerate(planned)
    ]
    yield from make_tables(config, laws)


def plan_points(config: GrowthBenchConfig) -> Iterator[tuple[str, int | str, Point]]:
    """Yield what is measured: the law, the value that varies, and the amount of work."""
    usual = Point(edits=config.edits, batch=4, steps=config.steps)
    for edits in (config.edits, 2 * config.edits):
        yield "edits", edits, dataclasses.replace(usual, edits=edits)
    for steps in (config.steps, 5 * config.steps):
        yield "steps", steps, dataclasses.replace(usual, edits=4, steps=steps)
    for batch in (1, 2, 4, 8):
        yield "batch", batch, dataclasses.replace(usual, batch=batch)
    for size in (128, 192, 256):
        yield "size", size, dataclasses.replace(usual, edits=4, size=size)
    for law, source_variance in (("targets", True), ("targets, source without variance", False)):
        for targets in (1, 2, 4, 8):
            yield law, targets, dataclasses.replace(usual, batch=8, targets=targets, source_variance=source_variance)
    for saving in ("", *SAVINGS):
        yield "saving undone", saving or "nothing", dataclasses.replace(usual, edits=4, without=saving)


def summarise(figures: Sequence[PointFigures], law: str) -> dict[str, Any]:
    """Take the medians over the rounds, and the range of the CPU time that the law is about."""
    seconds = [each.whole_s if law == "edits" else each.denoise_s for each in figures]
    return {
        "cpu_s": statistics.median(seconds),
        "cpu_s_range": [min(seconds), max(seconds)],
        "memory_mb": statistics.median(each.memory_mb for each in figures),
        "rows": figures[0].rows,
        "operations": figures[0].operations,
    }


def make_tables(config: GrowthBenchConfig, laws: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Lay out the numbers, a table for each law."""
    tables = []
    for law, note in NOTES.items():
        own = [each for each in laws if each["law"] == law]
        first = own[0]
        tables.append(
            Table(
                title=f"By {law}",
                columns=(law.partition(",")[0], "CPU s", "lowest to highest", "ratio", "expected", "memory MB"),
                rows=tuple(
                    (
                        *(str(each["value"]), f"{each['cpu_s']:.2f}"),
                        f"{each['cpu_s_range'][0]:.2f} to {each['cpu_s_range'][1]:.2f}",
                        f"{each['cpu_s'] / first['cpu_s']:.3f}",
                        _expected(each, first),
                        f"{each['memory_mb']:.0f}",
                    )
                    for each in own
                ),
                note=note,
            )
        )
    conditions = f"{processor()}, {config.threads} threads, model {config.model}. Medians of {config.rounds} rounds."
    tables[0] = dataclasses.replace(tables[0], note=f"{tables[0].note} {conditions}")
    return tables


def _expected(point: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    if point is first:
        return "1"
    if point["law"].startswith("targets"):
        return f"{point['rows'] / first['rows']:.3f}"
    if point["law"] == "saving undone":
        return f"{point['operations'] / first['operations']:.3f}"
    return EXPECTED.get(point["law"], "-")


if __name__ == "__main__":
    sys.exit(run_suite("growth", GrowthBenchConfig, measure, sys.argv[1:]))
