"""Write a benchmark of drawn scenes: records to edit, each with its exact mask and its exact target picture."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from jobs._cli.main import run_job
from pipelines.exits import EXIT_DONE
from pipelines.ingest.scenes import FILE_NAME, ScenesConfig, holds_scenes, scene_file
from pipelines.store.location import check_writable, exists, locate, put_atomic, read_bytes
from vimaedit.errors import ConfigError

logger = logging.getLogger("jobs.scenes")


def _write(config: ScenesConfig) -> int:
    output = locate(config.output)
    check_writable(output)
    place, records = output / FILE_NAME, scene_file(config)
    if exists(place) and read_bytes(place) != records:
        if not holds_scenes(place):
            raise ConfigError(f"output: got {place.url}, which holds other records; allowed: a new or empty folder")
        logger.warning("%s: other scenes stood there, which are written over", place.url)
    put_atomic(place, records)
    print(f"{config.count} records: {place.url}")
    return EXIT_DONE


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(ScenesConfig, _write, words, name="scenes", summary=__doc__ or "", required=("output",))


if __name__ == "__main__":
    sys.exit(main())
