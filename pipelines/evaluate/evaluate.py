"""An evaluation: every method edits the benchmark, is scored, and appears in one report."""

from __future__ import annotations

import functools
import logging
import posixpath
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.cluster.progress import ProgressState
from pipelines.cluster.session import connect
from pipelines.edit.edit import DryRunReport, plan_dry_run, run_edit
from pipelines.evaluate.config import EvaluateConfig, edit_job, score_job
from pipelines.evaluate.report.gather import gather
from pipelines.evaluate.report.leaderboard import FILE_NAME as LEADERBOARD_NAME
from pipelines.evaluate.report.leaderboard import leaderboard
from pipelines.evaluate.report.page import render
from pipelines.exits import EXIT_LOSSES, EXIT_STOPPED
from pipelines.ingest.ingest import FILE_NAME, IngestConfig, IngestSummary, read_summary, run_ingest
from pipelines.ingest.sources import is_published
from pipelines.score.score import run_score
from pipelines.store.location import Location, check_writable, locate, put_atomic
from pipelines.store.masking import mask_urls
from pipelines.tables import Table
from vimaedit.errors import ConfigError

logger = logging.getLogger(__name__)

REPORT_NAME = "report.html"
MethodProgress = Callable[[str, ProgressState], None]


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary:
    """What an evaluation came to: exit code, where the report lies, how the methods stand (None: stopped early), and how many
    seconds each part took."""

    exit_code: int
    report: str | None
    leaderboard: Table | None
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    stop_reason: str | None = None


def run_evaluation(
    configs: Sequence[EvaluateConfig],
    progress: MethodProgress | None = None,
    on_started: Callable[[], None] | None = None,
    against: str = "",
) -> EvaluationSummary:
    """Edit, score and report; `configs`, of one method each, differ in method, label and options of the edit alone.

    `against`: the run that the others are compared with, empty: the first. What is finished is kept.

    `on_started` is called right after Ray has started (the place to install signal handlers).

    Raises: ConfigError (exit 2) as `run_edit` and `run_score` do.
    """
    first = configs[0]
    output = locate(first.output)
    check_writable(output)
    seconds: dict[str, float] = {}
    records, ingest = _records(first, output, seconds)
    jobs = {config.names[0]: edit_job(config, records) for config in configs}
    against = against or next(iter(jobs))
    connect(jobs[against])
    if on_started is not None:
        on_started()
    warnings: list[str] = []
    codes = []
    for name, job in jobs.items():
        started = time.monotonic()
        logger.info("editing with %s: %s", name, mask_urls(job.output))
        edited = run_edit(job, functools.partial(progress, name) if progress else None)
        seconds[f"edit {name}"] = time.monotonic() - started
        warnings += [f"{name}: {text}" for text in edited.warnings]
        codes.append(edited.exit_code)
        if edited.exit_code == EXIT_STOPPED:
            return EvaluationSummary(
                exit_code=EXIT_STOPPED,
                report=None,
                leaderboard=None,
                seconds=seconds,
                warnings=tuple(warnings),
                stop_reason=f"{name}: {edited.stop_reason}",
            )
    # The one that the others are compared with comes first.
    for name in sorted(jobs, key=lambda name: name != against):
        started = time.monotonic()
        logger.info("scoring %s", name)
        scored = run_score(score_job(first, records, name, against))
        seconds[f"score {name}"] = time.monotonic() - started
        warnings += [f"{name}: {text}" for text in scored.warnings]
        codes.append(scored.exit_code)
    started = time.monotonic()
    board = gather(
        output, list(jobs), benchmark=mask_urls(records), ingest=ingest, gallery=first.gallery, px=first.thumbnail_px
    )
    report = output / REPORT_NAME
    put_atomic(report, render(board).encode())
    table = leaderboard(board)
    put_atomic(output / LEADERBOARD_NAME, table.markdown().encode())
    seconds["report"] = time.monotonic() - started
    return EvaluationSummary(
        exit_code=EXIT_LOSSES if any(codes) else 0,
        report=mask_urls(report.url),
        leaderboard=table,
        seconds=seconds,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def plan_evaluation(configs: Sequence[EvaluateConfig], on_started: Callable[[], None] | None = None) -> dict[str, DryRunReport]:
    """Say what the editing run of every method would be; writes nothing.

    Raises: ConfigError as `run_evaluation`, and for a benchmark as published, of which records would have to be written first.
    """
    first = configs[0]
    if is_published(first.benchmark):
        raise ConfigError(
            f"dry_run: got true with benchmark={mask_urls(first.benchmark)}, a benchmark as published; "
            "allowed: records to edit, which jobs.ingest makes of it"
        )
    return {config.names[0]: plan_dry_run(edit_job(config, first.benchmark), on_started) for config in configs}


def _records(config: EvaluateConfig, output: Location, seconds: dict[str, float]) -> tuple[str, IngestSummary | None]:
    """Return where the records lie and what their ingest said; a benchmark as published is taken in first."""
    if not is_published(config.benchmark):
        place = locate(config.benchmark)
        folder = Location(place.fs, posixpath.dirname(place.path)) if place.path.endswith(FILE_NAME) else place
        return config.benchmark, read_summary(folder)
    started = time.monotonic()
    folder = output / "benchmark"
    ingest = run_ingest(
        IngestConfig(input=config.benchmark, output=folder.url, min_side_px=config.min_side_px, max_pixels=config.max_pixels)
    )
    seconds["ingest"] = time.monotonic() - started
    return (folder / FILE_NAME).url, ingest
