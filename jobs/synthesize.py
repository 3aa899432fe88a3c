"""Make a data set for training instruction editors: captions, pictures with captions or prompt pairs in, filtered records out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs._cli.signals import exit_on_signals

# What takes seconds to import is imported where it is used, see jobs/edit.py.
if TYPE_CHECKING:
    from pipelines.synthesis.config import SynthesizeConfig

logger = logging.getLogger("jobs.synthesize")

REQUIRED = ("input", "output")


def _synthesize(config: SynthesizeConfig) -> int:
    from jobs._cli.cluster import on_cluster, progress, start, warn
    from pipelines.store.lock import release_held
    from pipelines.synthesis.begin import begin_synthesis, find_finished

    config = on_cluster(config)
    logger.info(
        "model %s, %d candidates of a pair, input %s, output %s", config.model, config.candidates, config.input, config.output
    )
    begun = begin_synthesis(config)
    if config.dry_run:
        on_started = start(config.ray_address)  # it writes nothing, so there is nothing to save either
        from pipelines.synthesis.scale import estimate_synthesis, estimate_text

        estimate = estimate_synthesis(config, on_started, begun)
        warn(estimate.warnings)
        print(estimate_text(estimate))
        return 0
    summary = find_finished(begun)
    if summary is None:
        on_started = start(config.ray_address, release_held)
        from pipelines.synthesis.synthesize import run_synthesis

        with progress(config.log_format, "candidates") as show:
            summary = run_synthesis(config, show, on_started, begun)
    warn(summary.warnings)
    print(summary.text())
    return summary.exit_code


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    exit_on_signals()
    from jobs._cli.main import run_job
    from pipelines.synthesis.config import SynthesizeConfig

    return run_job(SynthesizeConfig, _synthesize, words, name="synthesize", summary=__doc__ or "", required=REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
