"""What every job shares: arguments, logging, signals and exit codes."""

from __future__ import annotations

import errno
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from jobs._cli.console import own_stderr
from jobs._cli.help import help_text
from jobs._cli.options import CommandLine, config_yaml, load_config, parse_command_line
from jobs._cli.progress import LogHandler
from jobs._cli.signals import exit_on_signals, leave
from jobs._cli.values import SHOWN_CHARACTERS
from pipelines.cluster.logs import JsonFormatter, TextFormatter
from pipelines.exits import EXIT_CONFIG, EXIT_DONE, EXIT_ERROR
from pipelines.store.location import is_transient
from pipelines.store.masking import cut, mask_urls, printable_lines
from vimaedit.errors import ConfigError

Config = TypeVar("Config")
logger = logging.getLogger(__name__)


def run_job(
    config_type: type[Config],
    run: Callable[..., int],
    words: Sequence[str] | None,
    *,
    name: str,
    summary: str,
    required: Sequence[str],
    read: Callable[[CommandLine], Sequence[Config]] | None = None,
) -> int:
    """Parse `words` (None: the process's arguments), run the job and return its exit code.

    `read` makes several configurations of one command line, which `run` takes one after the other; else there is one.

    0, 3 and 5 come from `run` itself; wrong configuration and an unreadable input give 2, any other error 1, a signal 4.
    """
    if words is None:
        own_stderr()
    try:
        line = parse_command_line(sys.argv[1:] if words is None else words)
        if line.help:
            print(help_text(config_type, name=name, summary=summary, required=required))
            return EXIT_DONE
        configs = [load_config(config_type, line, required)] if read is None else read(line)
    except ConfigError as error:
        return _refuse(name, error)
    except Exception as error:  # a model's recipe lies in a store that does not answer
        if (refusal := _long_name(error)) is not None:
            return _refuse(name, refusal)
        _log_to_stderr()
        if is_transient(error):
            text = printable_lines(mask_urls(f"{type(error).__name__}: {error}"))
            logger.error("jobs.%s stopped, for a place that an option names does not answer: %s", name, text)
        else:
            logger.exception("jobs.%s stopped by an error", name)
        return EXIT_ERROR
    if line.print_config:
        print("".join(config_yaml(config, required) for config in configs), end="")
        return EXIT_DONE
    _log_to_stderr(getattr(configs[0], "log_format", "text"))
    exit_on_signals()
    try:
        return run(*configs)
    except ConfigError as error:
        return _refuse(name, error)
    except SystemExit as stop:
        if stop.code == signal.SIGTERM:  # raised by the handler that stands from within `ray.init` until the job's own is back
            leave(signal.SIGTERM.name)
        raise
    except Exception as error:
        if (refusal := _long_name(error)) is not None:
            return _refuse(name, refusal)
        logger.exception("jobs.%s stopped by an error", name)
        return EXIT_ERROR


def _log_to_stderr(log_format: str = "text") -> None:
    handler = LogHandler(sys.stderr)
    text = TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _long_name(error: Exception) -> ConfigError | None:
    """Return the refusal of a path that no file can have, which shows wherever it is first asked for; None for other errors."""
    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG or error.filename is None:
        return None
    return ConfigError(
        f"got the path {cut(str(error.filename), SHOWN_CHARACTERS)!r}; allowed: names as short as files may have"
    )


def _refuse(name: str, error: Exception) -> int:
    print(f"jobs.{name}: {printable_lines(mask_urls(str(error)))}", file=sys.stderr)
    return EXIT_CONFIG
