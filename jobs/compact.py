"""Rewrite the output of a finished run into large shards (about 500 MB) under Hugging Face names; again, it goes on."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs._cli.cluster import warn
from jobs._cli.main import run_job
from jobs._cli.signals import exit_on_signals
from pipelines.exits import EXIT_DONE
from pipelines.output.compact import CompactConfig, compact
from pipelines.store.lock import release_held


def _compact(config: CompactConfig) -> int:
    exit_on_signals(release_held)
    done = compact(config)
    warn(done.warnings)
    print(done.text())
    return EXIT_DONE


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(CompactConfig, _compact, words, name="compact", summary=__doc__ or "", required=("input", "output"))


if __name__ == "__main__":
    sys.exit(main())
