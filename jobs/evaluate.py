"""Edit a benchmark with one method or several (method=[vimaedit, p2p]), score the results, and write one report."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs._cli.signals import exit_on_signals

# What takes seconds to import is imported where it is used, so that a signal finds the job's handlers in place before.
if TYPE_CHECKING:
    from jobs._cli.options import CommandLine
    from pipelines.cluster.progress import ProgressState
    from pipelines.evaluate.config import EvaluateConfig, Variant
    from pipelines.evaluate.evaluate import EvaluationSummary

logger = logging.getLogger("jobs.evaluate")

REQUIRED = ("benchmark", "output")


def summary_text(summary: EvaluationSummary) -> str:
    """Say how long each part took, how the methods stand, and where the report lies."""
    lines = [f"{part}: {seconds:.1f} s" for part, seconds in summary.seconds.items()]
    if summary.leaderboard is not None:
        lines += ["", summary.leaderboard.text(), ""]
    lines.append(f"report: {summary.report}" if summary.report else f"stopped early: {summary.stop_reason}")
    return "\n".join(lines)


def _evaluate(configs: Sequence[EvaluateConfig], against: str) -> int:
    from jobs._cli.progress import ProgressLine, progress_line
    from jobs.edit import dry_run_text, quiet_engine
    from pipelines.evaluate.evaluate import plan_evaluation, run_evaluation
    from pipelines.store.lock import release_held

    # `ray job submit` and RayJob name their cluster in the environment.
    address = configs[0].ray_address or os.environ.get("RAY_ADDRESS") or None
    configs = [dataclasses.replace(config, ray_address=address) for config in configs]
    if configs[0].dry_run:

        def on_dry_run_started() -> None:
            quiet_engine()
            exit_on_signals()  # it writes nothing, so there is nothing to save either

        for name, report in plan_evaluation(configs, on_dry_run_started).items():
            print(f"{name}\n{dry_run_text(report)}")
        return 0

    def on_started() -> None:
        quiet_engine()
        exit_on_signals(release_held)

    lines: dict[str, ProgressLine] = {}

    def show(method: str, state: ProgressState) -> None:
        line = lines.setdefault(method, progress_line(configs[0].log_format, f"{method} edits"))
        line(state.done, state.total, state.counts)

    try:
        summary = run_evaluation(configs, show, on_started, against=against)
    finally:
        for line in lines.values():
            line.close()
    for warning in summary.warnings:
        logger.warning("%s", warning)
    print(summary_text(summary))
    return summary.exit_code


def read_methods(line: CommandLine) -> tuple[list[EvaluateConfig], str]:
    """Read the settings of every method on a command line, and which of them the others are compared with.

    Every method has published values of its own for options that are not given, so each is read by itself.
    """
    from jobs._cli.options import load_config
    from pipelines.evaluate.config import EvaluateConfig

    values = dict(line.values)
    if values.get("method", "").startswith("["):
        values["methods"] = values.pop("method")
    line = dataclasses.replace(line, values=values)
    config = load_config(EvaluateConfig, line, REQUIRED)
    own = [{**values, **words_of(variant)} for variant in config.variants]
    return [load_config(EvaluateConfig, dataclasses.replace(line, values=each), REQUIRED) for each in own], config.against


def words_of(variant: Variant) -> dict[str, str]:
    """Return what the command line of a variant alone says besides the rest."""
    return {"methods": "[]", "against": "", "method": variant.method, "label": variant.name, **variant.options}


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    exit_on_signals()
    from jobs._cli.main import run_job
    from pipelines.evaluate.config import EvaluateConfig

    against = ""

    def read(line: CommandLine) -> list[EvaluateConfig]:
        nonlocal against
        configs, against = read_methods(line)
        return configs

    def run(*configs: EvaluateConfig) -> int:
        return _evaluate(configs, against)

    return run_job(EvaluateConfig, run, words, name="evaluate", summary=__doc__ or "", required=REQUIRED, read=read)


if __name__ == "__main__":
    sys.exit(main())
