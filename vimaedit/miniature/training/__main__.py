"""Train the built-in family, or one of its stages, as a plain program: `python -m vimaedit.miniature.training key=value ...`."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from vimaedit.errors import ConfigError
from vimaedit.miniature.training.options import TrainConfig, parse_options
from vimaedit.miniature.training.stages import LOG_FORMAT, train_family

EXIT_DONE, EXIT_CONFIG, EXIT_INTERRUPTED = 0, 2, 4


def main(words: Sequence[str]) -> int:
    """Run the program and return its exit code."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        print(train_family(parse_options(TrainConfig, words)))
    except ConfigError as error:
        print(f"vimaedit.miniature.training: {error}", file=sys.stderr)
        return EXIT_CONFIG
    return EXIT_DONE


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(EXIT_INTERRUPTED)  # what the last checkpoint holds is gone on from; other processes end with this one


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
