"""Edit a benchmark with one method or several (method=[vimaedit, p2p]), score the results, and write one report."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs._cli.signals import exit_on_signals

# What takes seconds to import is imported where it is used, so that a signal finds the job's handlers in place before.
if TYPE_CHECKING:
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


def spread_methods(words: Sequence[str]) -> list[str]:
    """Write `method=[a, b]` as the list option that it means; one method stays as it stands."""
    return [f"methods={word.removeprefix('method=')}" if word.startswith("method=[") else word for word in words]


def words_of(variant: Variant) -> dict[str, str]:
    """Return what the command line of a variant alone says besides the rest."""
    return {"methods": "[]", "against": "", "method": variant.method, "label": variant.name, **variant.options}


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    exit_on_signals()
    from jobs._cli.main import run_job
    from jobs._cli.options import load_config, parse_command_line
    from pipelines.evaluate.config import EvaluateConfig
    from vimaedit.errors import ConfigError

    given = spread_methods(sys.argv[1:] if words is None else words)

    def run(config: EvaluateConfig) -> int:
        # Every method has published values of its own for options that are not given, so each is read by itself.
        line = parse_command_line(given)
        own = [{**line.values, **words_of(variant)} for variant in config.variants]
        each = [load_config(EvaluateConfig, dataclasses.replace(line, values=values), REQUIRED) for values in own]
        return _evaluate(each, config.against)

    commands = [given]
    if "--print-config" in given:
        with contextlib.suppress(ConfigError):  # said by the job itself
            variants = load_config(EvaluateConfig, parse_command_line(given), REQUIRED).variants
            # The settings of one method are none for another: each is printed as it would be read alone.
            commands = [[*given, *map("=".join, words_of(variant).items())] for variant in variants]
    codes = [run_job(EvaluateConfig, run, own, name="evaluate", summary=__doc__ or "", required=REQUIRED) for own in commands]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
