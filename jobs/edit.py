"""Edit a data set: records in Parquet in, one row per edit out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from ray.data import DataContext

from jobs._main import EXIT_DONE, exit_on_signals, run_job
from jobs._progress import ProgressLine
from pipelines.config import EditJobConfig
from pipelines.edit import DryRunReport, RunSummary, plan_dry_run, run_edit
from pipelines.finish import write_interrupted
from pipelines.progress import ProgressState
from pipelines.storage import locate
from vimaedit.types import Status

logger = logging.getLogger("jobs.edit")

REQUIRED = ("input", "output")


def summary_text(summary: RunSummary) -> str:
    """Say what a run came to: rows per status, rate, and where the results lie."""
    counts = ", ".join(f"{summary.counts.get(status, 0)} {status}" for status in Status)
    lines = [f"{summary.rows} rows in {summary.seconds:.1f} s ({summary.rows_per_second:.2f} rows/s): {counts}"]
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
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that its bars are off
    for handler in logging.getLogger("ray.data").handlers:
        if handler.get_name() == "console":
            handler.setLevel(logging.WARNING)


def _places(summary: RunSummary) -> list[tuple[str, str | None]]:
    return [("data:  ", summary.data), ("sheet: ", summary.sheet), ("report:", summary.run_json)]


def _edit(job: EditJobConfig) -> int:
    logger.info("model %s, %d steps, input %s, output %s", job.model, job.steps, job.input, job.output)
    output = locate(job.output)

    def on_started() -> None:
        quiet_engine()
        exit_on_signals(lambda name: write_interrupted(output, name))

    if job.dry_run:
        report = plan_dry_run(job, on_started=on_started)
        _warn(report.warnings)
        print(dry_run_text(report))
        return EXIT_DONE
    line = ProgressLine(sys.stderr)

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
    return run_job(EditJobConfig, _edit, words, name="edit", summary=__doc__ or "", required=REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
