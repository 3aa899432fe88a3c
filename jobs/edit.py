"""Edit a data set: records in Parquet in, one row per edit out. The same command again goes on where it was."""

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
    from pipelines.edit.edit import DryRunReport, RunSummary
    from pipelines.output.config import EditJobConfig

logger = logging.getLogger("jobs.edit")

REQUIRED = ("input", "output")


def summary_text(summary: RunSummary) -> str:
    """Say what a run came to: rows per status, rate, and where the results lie."""
    from vimaedit.types import Status

    counts = ", ".join(f"{summary.counts.get(status, 0)} {status}" for status in Status)
    if summary.was_finished:
        lines = [f"finished before, nothing to do: {summary.rows} rows: {counts}"]
    else:
        done = f"{summary.edited} of " if summary.edited != summary.rows else ""
        lines = [f"{done}{summary.rows} rows in {summary.seconds:.1f} s ({summary.rows_per_second:.2f} rows/s): {counts}"]
    lines += [f"{label} {place}" for label, place in _places(summary) if place]
    if summary.stop_reason:
        lines.append(f"stopped early: {summary.stop_reason}")
    return "\n".join(lines)


def dry_run_text(report: DryRunReport) -> str:
    """Say what a run would be."""
    unreadable = f", {report.unreadable_files} unreadable" if report.unreadable_files else ""
    lines = [
        f"input:  {report.files} files{unreadable}, {report.requests} edits",
        f"plan:   {report.units} units of up to {report.requests_per_unit} edits, batches of {report.batch_size}",
        f"place:  {report.actors} actors, {report.device}, {report.dtype}",
        f"digest: config {report.config_digest}, model {report.model_digest}",
    ]
    if report.rows_per_hour is None or report.output_gb is None:
        lines.append("sample: nothing could be measured")
    else:
        hours = report.requests / report.rows_per_hour
        lines.append(f"sample: {report.rows_per_hour:.0f} rows/h, so {hours:.2f} h and {report.output_gb:.3f} GB of output")
    return "\n".join([*lines, "dry run: nothing was written"])


def quiet_engine() -> None:
    """Leave the console to this job's own progress line; Ray Data's log file in its session folder still has everything."""
    from ray.data import DataContext

    from pipelines.cluster.private import PROGRESS_LOGGER

    DataContext.get_current().enable_progress_bars = False
    logging.getLogger(PROGRESS_LOGGER).setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if handler.get_name() == "console":
            handler.setLevel(logging.WARNING)


def _places(summary: RunSummary) -> list[tuple[str, str | None]]:
    return [("data:  ", summary.data), ("sheet: ", summary.sheet), ("report:", summary.run_json)]


def _edit(job: EditJobConfig) -> int:
    from jobs._cli.progress import progress_line
    from pipelines.edit.edit import plan_dry_run, run_edit
    from pipelines.store.lock import release_held

    if job.ray_address is None:  # `ray job submit` and RayJob name their cluster in the environment
        job = dataclasses.replace(job, ray_address=os.environ.get("RAY_ADDRESS") or None)
    logger.info("model %s, %d steps, input %s, output %s", job.model, job.steps, job.input, job.output)
    if job.dry_run:

        def on_dry_run_started() -> None:
            quiet_engine()
            exit_on_signals()  # it writes nothing, so there is nothing to save either

        report = plan_dry_run(job, on_started=on_dry_run_started)
        _warn(report.warnings)
        print(dry_run_text(report))
        return 0

    def on_started() -> None:
        quiet_engine()
        exit_on_signals(release_held)

    line = progress_line(job.log_format)

    def show(state: ProgressState) -> None:
        line(state.done, state.total, state.counts)

    try:
        summary = run_edit(job, show, on_started=on_started)
    finally:
        line.close()
    _warn(summary.warnings)
    print(summary_text(summary))
    return summary.exit_code


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        logger.warning("%s", warning)


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    exit_on_signals()
    from jobs._cli.main import run_job
    from pipelines.output.config import EditJobConfig

    return run_job(EditJobConfig, _edit, words, name="edit", summary=__doc__ or "", required=REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
