"""Edit a benchmark with one method or several (method=[vimaedit, p2p]), score the results, and write one report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs._cli.signals import exit_on_signals

# What takes seconds to import is imported where it is used, see jobs/edit.py.
if TYPE_CHECKING:
    from jobs._cli.options import CommandLine
    from pipelines.evaluate.config import EvaluateConfig

logger = logging.getLogger("jobs.evaluate")

REQUIRED = ("benchmark", "output")


def _evaluate(configs: Sequence[EvaluateConfig], against: str) -> int:
    from jobs._cli.cluster import on_cluster, progress, start, warn
    from pipelines.evaluate.begin import begin_evaluation, find_finished
    from pipelines.store.lock import release_held

    configs = [on_cluster(config) for config in configs]
    first = configs[0]
    logger.info("model %s, benchmark %s, output %s", first.model, first.benchmark, first.output)
    begun = begin_evaluation(configs, against)
    if first.dry_run:
        on_started = start(first.ray_address)  # it writes nothing, so there is nothing to save either
        from pipelines.evaluate.evaluate import plan_evaluation

        for name, report in plan_evaluation(begun, on_started).items():
            print(f"{name}\n{report.text()}")
        return 0
    summary = find_finished(begun)
    if summary is None:
        on_started = start(first.ray_address, release_held)
        from pipelines.evaluate.evaluate import run_evaluation

        with progress(first.log_format) as show:
            summary = run_evaluation(begun, show, on_started)
    warn(summary.warnings)
    print(summary.text())
    return summary.exit_code


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    exit_on_signals()
    from jobs._cli.main import run_job
    from jobs._cli.methods import read_methods
    from pipelines.evaluate.config import EvaluateConfig

    against = ""

    def read(line: CommandLine) -> list[EvaluateConfig]:
        nonlocal against
        configs, against = read_methods(line, REQUIRED)
        return configs

    def run(*configs: EvaluateConfig) -> int:
        return _evaluate(configs, against)

    return run_job(EvaluateConfig, run, words, name="evaluate", summary=__doc__ or "", required=REQUIRED, read=read)


if __name__ == "__main__":
    sys.exit(main())
