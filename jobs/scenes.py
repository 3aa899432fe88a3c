"""Write a benchmark of drawn scenes: records to edit, each with its exact mask and its exact target picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs._cli.main import run_job
from pipelines.exits import EXIT_DONE
from pipelines.ingest.scenes import FILE_NAME, ScenesConfig, scene_file
from pipelines.store.location import check_writable, locate, put_atomic


def _write(config: ScenesConfig) -> int:
    output = locate(config.output)
    check_writable(output)
    place = output / FILE_NAME
    put_atomic(place, scene_file(config))
    print(f"{config.count} records: {place.url}")
    return EXIT_DONE


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(ScenesConfig, _write, words, name="scenes", summary=__doc__ or "", required=("output",))


if __name__ == "__main__":
    sys.exit(main())
