"""An evaluation: every method edits the benchmark, is scored, and appears in one report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from pipelines.cluster.progress import ProgressState
from pipelines.cluster.session import connect
from pipelines.edit.edit import plan_dry_run, run_edit
from pipelines.evaluate.begin import REPORT_NAME, BegunEvaluation, EvaluationSummary, report_digest
from pipelines.evaluate.config import score_job
from pipelines.evaluate.report.gather import gather
from pipelines.evaluate.report.leaderboard import FILE_NAME as LEADERBOARD_NAME
from pipelines.evaluate.report.leaderboard import leaderboard
from pipelines.evaluate.report.page import render
from pipelines.exits import EXIT_LOSSES, EXIT_STOPPED
from pipelines.output.summary import DryRunReport
from pipelines.score.score import run_score
from pipelines.store.listing import named_inputs
from pipelines.store.location import put_atomic
from pipelines.store.masking import mask_urls

logger = logging.getLogger(__name__)

UnitProgress = Callable[[ProgressState, str], None]


def run_evaluation(
    begun: BegunEvaluation, progress: UnitProgress | None = None, on_started: Callable[[], None] | None = None
) -> EvaluationSummary:
    """Edit, score and report; what is finished is kept.

    `on_started` is called right after Ray has started (the place to install signal handlers); `progress` is told what it counts.

    Raises: ConfigError (exit 2) as `run_edit` and `run_score` do.
    """
    output, seconds = begun.output, dict(begun.seconds)
    connect(begun.config)
    if on_started is not None:
        on_started()

    def counting(unit: str) -> Callable[[ProgressState], None] | None:
        return None if progress is None else lambda state: progress(state, unit)

    warnings: list[str] = []
    codes = []
    for name, run in begun.runs.items():
        started = time.monotonic()
        logger.info("editing with %s: %s", name, mask_urls(run.job.output))
        edited = run_edit(run.job, counting(f"{name} edits"), begun=run)
        seconds[f"edit {name}"] = time.monotonic() - started
        warnings += [f"{name}: {text}" for text in (*edited.warnings, *edited.reasons())]
        codes.append(edited.exit_code)
        if edited.exit_code == EXIT_STOPPED:
            return EvaluationSummary(
                exit_code=EXIT_STOPPED,
                report=None,
                leaderboard=(),
                seconds=seconds,
                warnings=tuple(warnings),
                stop_reason=f"{name}: {edited.stop_reason}",
            )
    for name in begun.names:
        started = time.monotonic()
        logger.info("scoring %s", name)
        scored = run_score(score_job(begun.config, begun.records, name, begun.against), counting(f"{name} scores"))
        seconds[f"score {name}"] = time.monotonic() - started
        warnings += [f"{name}: {text}" for text in scored.warnings]
        codes.append(scored.exit_code)
    started = time.monotonic()
    board = gather(
        output,
        list(begun.runs),
        benchmark=named_inputs(begun.records),
        ingest=begun.ingest,
        gallery=begun.config.gallery,
        px=begun.config.thumbnail_px,
    )
    report = output / REPORT_NAME
    put_atomic(report, render(board, report_digest(begun)).encode())
    tables = leaderboard(board)
    put_atomic(output / LEADERBOARD_NAME, "\n\n".join(table.markdown() for table in tables).encode())
    seconds["report"] = time.monotonic() - started
    return EvaluationSummary(
        exit_code=EXIT_LOSSES if any(codes) else 0,
        report=mask_urls(report.url),
        leaderboard=tuple(tables),
        seconds=seconds,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def plan_evaluation(begun: BegunEvaluation, on_started: Callable[[], None] | None = None) -> dict[str, DryRunReport]:
    """Say what the editing run of every method would be; writes nothing.

    Raises: ConfigError as `run_evaluation`.
    """
    return {name: plan_dry_run(run.job, on_started, run) for name, run in begun.runs.items()}
