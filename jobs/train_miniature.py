"""Train the built-in model family on the scene world: one command, resumable, from two CPU cores to one GPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs._cli.signals import exit_on_signals


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    exit_on_signals()
    from jobs._cli.main import run_job
    from pipelines.exits import EXIT_DONE
    from vimaedit.miniature.training.options import TrainConfig

    def train(config: TrainConfig) -> int:
        from vimaedit.miniature.training.stages import train_family

        print(train_family(config))
        return EXIT_DONE

    return run_job(TrainConfig, train, words, name="train_miniature", summary=__doc__ or "", required=("output",))


if __name__ == "__main__":
    sys.exit(main())
