"""Make a data set for training instruction editors: captions, pictures with captions or prompt pairs in, filtered records out."""

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
    from pipelines.synthesis.config import SynthesizeConfig
    from pipelines.synthesis.synthesize import SynthesisSummary

logger = logging.getLogger("jobs.synthesize")

REQUIRED = ("input", "output")


def summary_text(summary: SynthesisSummary) -> str:
    """Say what a synthesis came to: candidates by outcome, records by split, and where they lie."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in summary.counts.items())
    records = ", ".join(f"{count} {split}" for split, count in summary.records.items())
    total = sum(summary.counts.values())
    lines = [f"{total} candidates in {summary.seconds:.1f} s: {counts}", f"records: {records}"] if total else []
    if summary.was_finished:
        lines.insert(0, "finished before: nothing was done")
    lines += [summary.truth] if summary.truth else []
    lines += summary.places
    if summary.stop_reason:
        lines.append(f"stopped early: {summary.stop_reason}")
    return "\n".join(lines)


def _synthesize(config: SynthesizeConfig) -> int:
    from jobs._cli.progress import progress_line
    from jobs.edit import quiet_engine
    from pipelines.store.lock import release_held
    from pipelines.synthesis.synthesize import run_synthesis

    if config.ray_address is None:  # `ray job submit` and RayJob name their cluster in the environment
        config = dataclasses.replace(config, ray_address=os.environ.get("RAY_ADDRESS") or None)
    logger.info(
        "model %s, %d candidates of a pair, input %s, output %s", config.model, config.candidates, config.input, config.output
    )

    def on_started() -> None:
        quiet_engine()
        exit_on_signals(None if config.dry_run else release_held)

    if config.dry_run:
        from pipelines.synthesis.scale import estimate_synthesis, estimate_text

        estimate = estimate_synthesis(config, on_started)
        for warning in estimate.warnings:
            logger.warning("%s", warning)
        print(estimate_text(estimate))
        return 0
    line = progress_line(config.log_format, "candidates")

    def show(state: ProgressState) -> None:
        line(state.done, state.total, state.counts)

    try:
        summary = run_synthesis(config, show, on_started)
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
    from pipelines.synthesis.config import SynthesizeConfig

    return run_job(SynthesizeConfig, _synthesize, words, name="synthesize", summary=__doc__ or "", required=REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
