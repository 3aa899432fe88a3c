"""Rewrite the output of a finished run into large shards (about 500 MB) under Hugging Face names."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs._cli.main import run_job
from pipelines.exits import EXIT_DONE
from pipelines.output.compact import CompactConfig, compact


def _compact(config: CompactConfig) -> int:
    done = compact(config)
    print(f"{done.rows} rows in {done.shards} shards, {done.bytes / 1e6:.1f} MB: {done.data}")
    return EXIT_DONE


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(CompactConfig, _compact, words, name="compact", summary=__doc__ or "", required=("input", "output"))


if __name__ == "__main__":
    sys.exit(main())
