"""Turn a benchmark as published (PIE-Bench, PIE-Bench++, GEdit-Bench, ImgEdit-Bench, MagicBrush, EMU-Edit, ...) into records to edit, with what scoring needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs._cli.main import run_job
from pipelines.exits import EXIT_DONE, EXIT_LOSSES
from pipelines.ingest.ingest import FILE_NAME, IngestConfig, run_ingest
from pipelines.store.location import locate
from pipelines.store.masking import mask_urls


def _ingest(config: IngestConfig) -> int:
    summary = run_ingest(config)
    print(summary.text())
    print(mask_urls((locate(config.output) / FILE_NAME).url))
    return EXIT_LOSSES if len(summary.left_out) > config.max_rejected_fraction * summary.entries else EXIT_DONE


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(IngestConfig, _ingest, words, name="ingest", summary=__doc__ or "", required=("input", "output"))


if __name__ == "__main__":
    sys.exit(main())
