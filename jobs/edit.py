"""Edit a data set: records in Parquet in, one row per edit out. The same command again goes on where it was."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs._cli.signals import exit_on_signals

# What takes seconds to import is imported where it is used: a signal finds the job's handlers in place before, and what is refused
# without Ray is refused at once.
if TYPE_CHECKING:
    from pipelines.output.config import EditJobConfig

logger = logging.getLogger("jobs.edit")

REQUIRED = ("input", "output")


def _edit(job: EditJobConfig) -> int:
    from jobs._cli.cluster import on_cluster, progress, start, warn
    from pipelines.edit.begin import begin, find_finished
    from pipelines.store.lock import release_held

    job = on_cluster(job)
    logger.info("model %s, %d steps, input %s, output %s", job.model, job.steps, job.input, job.output)
    begun = begin(job)
    if job.dry_run:
        on_started = start(job.ray_address)  # it writes nothing, so there is nothing to save either
        from pipelines.edit.edit import plan_dry_run

        report = plan_dry_run(job, on_started, begun)
        warn(report.warnings)
        print(report.text())
        return 0
    summary = find_finished(begun)
    if summary is None:
        on_started = start(job.ray_address, release_held)
        from pipelines.edit.edit import run_edit

        with progress(job.log_format) as show:
            summary = run_edit(job, show, on_started, begun=begun)
    warn(summary.warnings)
    print(summary.text())
    return summary.exit_code


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    exit_on_signals()
    from jobs._cli.main import run_job
    from pipelines.output.config import EditJobConfig

    return run_job(EditJobConfig, _edit, words, name="edit", summary=__doc__ or "", required=REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
