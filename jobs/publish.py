"""Push a finished, compacted data set to a hub's repository in one commit; again, it sends what is missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs._cli.cluster import warn
from jobs._cli.main import run_job
from pipelines.exits import EXIT_DONE
from pipelines.publish.publish import PublishConfig, publish
from pipelines.store.masking import printable_lines


def _publish(config: PublishConfig) -> int:
    done = publish(config)
    warn(done.warnings)
    print(printable_lines(done.text()))
    return EXIT_DONE


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(PublishConfig, _publish, words, name="publish", summary=__doc__ or "", required=("input", "repository"))


if __name__ == "__main__":
    sys.exit(main())
