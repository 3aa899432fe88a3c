"""Measure by one command: suite=miniature edits drawn scenes with the recipe and its ablations, suite=few-steps with fewer steps.

suite=NAME --help lists the keys of a suite.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs._cli.signals import exit_on_signals

# What takes seconds to import is imported where it is used, so that a signal finds the job's handlers in place before.
if TYPE_CHECKING:
    from pipelines.cluster.progress import ProgressState
    from pipelines.scenes.bench import SceneBenchConfig


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What a command line without a known suite is held against."""

    suite: str = ""  # miniature, few-steps: edits of drawn scenes with exact answers

    def __post_init__(self) -> None:
        from vimaedit.config import check_choice

        check_choice("suite", self.suite, SUITES)


@dataclass(frozen=True)
class Suite:
    """A suite: its settings, what runs it, and which keys it cannot do without."""

    config_type: type[Any]
    run: Callable[[Any], int]
    required: tuple[str, ...]


def _miniature() -> Suite:
    from pipelines.scenes.bench import SceneBenchConfig

    return Suite(SceneBenchConfig, _run_miniature, ("suite", "output"))


def _few_steps() -> Suite:
    from pipelines.scenes.bench import FewStepBenchConfig

    return Suite(FewStepBenchConfig, _run_miniature, ("suite", "output"))


SUITES: dict[str, Callable[[], Suite]] = {
    "miniature": _miniature,
    "few-steps": _few_steps,
}


def _run_miniature(config: SceneBenchConfig) -> int:
    from jobs._cli.cluster import start
    from jobs._cli.progress import ProgressLine
    from pipelines.scenes.bench import run_scene_bench
    from pipelines.scenes.report import plain_text
    from pipelines.store.lock import release_held

    if config.ray_address is None:  # `ray job submit` and RayJob name their cluster in the environment
        config = dataclasses.replace(config, ray_address=os.environ.get("RAY_ADDRESS") or None)

    on_started = start(config.ray_address, release_held)
    lines: dict[str, ProgressLine] = {}
    ended: set[str] = set()

    def show(variant: str, state: ProgressState) -> None:
        if variant in ended:
            return
        line = lines.setdefault(variant, ProgressLine(sys.stderr, unit=f"{variant} edits"))
        line(state.done, state.total, state.counts)
        if state.done >= state.total:
            line.close()
            ended.add(variant)

    try:
        summary = run_scene_bench(config, show, on_started=on_started)
    finally:
        for variant in lines.keys() - ended:
            lines[variant].close()
    if summary.numbers is not None:
        print(plain_text(summary.numbers))
        print()
    if summary.stop_reason:
        print(f"stopped early: {summary.stop_reason}")
    for place in summary.places:
        print(place)
    return summary.exit_code


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    exit_on_signals()
    from jobs._cli.main import run_job
    from pipelines.exits import EXIT_CONFIG

    given = sys.argv[1:] if words is None else list(words)
    # Which keys there are depends on the suite; the command line is read in full once that is known.
    named = [word for word in given if word.startswith("suite=")]
    name = named[-1].removeprefix("suite=") if named else ""
    summary = (__doc__ or "").strip()
    if name not in SUITES:
        known = [word for word in given if word == "--help"] + named
        return run_job(BenchConfig, lambda config: EXIT_CONFIG, known, name="bench", summary=summary, required=("suite",))
    suite = SUITES[name]()
    return run_job(suite.config_type, suite.run, given, name="bench", summary=summary, required=suite.required)


if __name__ == "__main__":
    sys.exit(main())
