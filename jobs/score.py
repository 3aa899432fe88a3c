"""Score saved runs, or anybody's edited pictures, beside a benchmark: metrics of every edit, means, comparison of two."""

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
    from pipelines.cluster.progress import ProgressState
    from pipelines.score.score import ScoreConfig, ScoreSummary

logger = logging.getLogger("jobs.score")

REQUIRED = ("benchmark", "edited", "output")


def summary_text(summary: ScoreSummary) -> str:
    """Say what scoring came to: the means, the requests without scores, the comparison, and where everything lies."""
    from pipelines.score.table import comparison_table, summary_table

    numbers = summary.aggregates
    counts = ", ".join(f"{count} {status}" for status, count in numbers["statuses"].items() if count)
    lines = [summary_table(summary.name, numbers["overall"], numbers["records"]).text(), "", f"requests: {counts}"]
    if numbers["unmatched"]:
        lines.append(f"edited pictures that belong to no request: {numbers['unmatched']}")
    if numbers["compared"] is not None:
        lines += ["", comparison_table(summary.name, numbers["compared"]).text()]
    return "\n".join([*lines, *summary.places])


def _score(config: ScoreConfig) -> int:
    from jobs._cli.progress import ProgressLine
    from jobs.edit import quiet_engine
    from pipelines.score.score import run_score

    if config.ray_address is None:  # `ray job submit` and RayJob name their cluster in the environment
        config = dataclasses.replace(config, ray_address=os.environ.get("RAY_ADDRESS") or None)

    def on_started() -> None:
        quiet_engine()
        exit_on_signals()  # nothing half-written has to be saved: scores are written at the end

    line = ProgressLine(sys.stderr)

    def show(state: ProgressState) -> None:
        line(state.done, state.total, state.counts)

    try:
        summary = run_score(config, show, on_started=on_started)
    finally:
        line.close()
    for warning in summary.warnings:
        logger.warning("%s", warning)
    print(summary_text(summary))
    return summary.exit_code


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    exit_on_signals()
    from jobs._cli.main import run_job
    from pipelines.score.config import ScoreConfig

    return run_job(ScoreConfig, _score, words, name="score", summary=__doc__ or "", required=REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
