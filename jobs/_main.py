"""What every job shares: arguments, logging, signals and exit codes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TypeVar

from jobs._help import help_text
from jobs._options import config_yaml, load_config, parse_command_line
from vimaedit.errors import ConfigError, RequestError

EXIT_DONE = 0
EXIT_ERROR = 1
EXIT_CONFIG = 2  # bad configuration, or no readable input at all
EXIT_INTERRUPTED = 4  # by SIGTERM or SIGINT, resumable
SAVE_STATE_S = 2.0

Config = TypeVar("Config")
logger = logging.getLogger(__name__)


def run_job(
    config_type: type[Config],
    run: Callable[[Config], int],
    words: Sequence[str] | None,
    *,
    name: str,
    summary: str,
    required: Sequence[str],
) -> int:
    """Parse `words` (None: the process's arguments), run the job and return its exit code.

    0, 3 and 5 come from `run` itself; wrong configuration and unusable input give 2, any other error 1, a signal 4.
    """
    try:
        line = parse_command_line(sys.argv[1:] if words is None else words)
        if line.help:
            print(help_text(config_type, name=name, summary=summary, required=required))
            return EXIT_DONE
        config = load_config(config_type, line, required)
    except ConfigError as error:
        return _refuse(name, error)
    if line.print_config:
        print(config_yaml(config), end="")
        return EXIT_DONE
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    exit_on_signals()
    try:
        return run(config)
    except (ConfigError, RequestError) as error:
        return _refuse(name, error)
    except Exception:
        logger.exception("jobs.%s stopped by an error", name)
        return EXIT_ERROR


def exit_on_signals(save_state: Callable[[str], None] | None = None) -> None:
    """Leave with exit code 4 at SIGTERM or SIGINT, after `save_state`, which is told the signal's name.

    Call it again after `ray.init`, which installs handlers of its own. Ray follows its SIGTERM with SIGKILL after three
    seconds, so `save_state` writes one small object at most and is not waited for any longer than two. The process leaves
    without its exit handlers: they would wait for the cluster.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if save_state is not None:
            # In a thread, since what the signal interrupted may hold a lock that saving needs.
            saver = threading.Thread(target=save_state, args=(name,), daemon=True)
            saver.start()
            saver.join(SAVE_STATE_S)
        with contextlib.suppress(OSError):
            os.write(2, f"\ninterrupted by {name}\n".encode())
        os._exit(EXIT_INTERRUPTED)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)


def _refuse(name: str, error: Exception) -> int:
    print(f"jobs.{name}: {error}", file=sys.stderr)
    return EXIT_CONFIG
