"""Score saved runs, or anybody's edited pictures, beside a benchmark: metrics of every edit, means, comparison of two."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs._cli.signals import exit_on_signals

# What takes seconds to import is imported where it is used, see jobs/edit.py.
if TYPE_CHECKING:
    from pipelines.score.config import ScoreConfig

logger = logging.getLogger("jobs.score")

REQUIRED = ("benchmark", "edited", "output")


def _score(config: ScoreConfig) -> int:
    from jobs._cli.cluster import on_cluster, progress, start, warn
    from pipelines.score.begin import begin_score, find_kept

    config = on_cluster(config)
    logger.info("benchmark %s, edited %s, output %s", config.benchmark, config.edited, config.output)
    begun = begin_score(config)
    summary = find_kept(begun)
    if summary is None:
        on_started = start(config.ray_address)  # nothing half-written has to be saved: scores are written at the end
        from pipelines.score.score import run_score

        with progress("text") as show:
            summary = run_score(config, show, on_started, begun)
    warn(summary.warnings)
    print(summary.text())
    return summary.exit_code


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    exit_on_signals()
    from jobs._cli.main import run_job
    from pipelines.score.config import ScoreConfig

    return run_job(ScoreConfig, _score, words, name="score", summary=__doc__ or "", required=REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
