"""What every suite does: read its options, measure, print its tables and add them to a dated file."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import vimaedit
from pipelines.tables import Table
from vimaedit.errors import ConfigError
from vimaedit.miniature.training.options import parse_options

LIBRARIES = ("torch", "diffusers", "transformers", "ray")  # of those that are there
EXIT_DONE, EXIT_CONFIG = 0, 2

Config = TypeVar("Config")


def run_suite(name: str, config_type: type[Config], measure: Callable[[Config], Iterator[Table]], words: Sequence[str]) -> int:
    """Measure what the words say, print the tables and add them to `output`, and return the exit code.

    Tables that were made before measuring broke off are kept.
    """
    tables: list[Table] = []
    try:
        config: Any = parse_options(config_type, words)
        if config.output and not Path(config.output).parent.is_dir():
            raise ConfigError(f"output: got {config.output!r}; allowed: a Markdown file in a folder that is there")
        try:
            for table in measure(config):
                tables.append(table)
                print(table.text(), end="\n\n", flush=True)
        finally:
            if config.output and tables:
                _add(name, config, tables)
    except ConfigError as error:
        say(str(error))
        return EXIT_CONFIG
    return EXIT_DONE


def _add(name: str, config: Any, tables: Sequence[Table]) -> None:
    """Add tables to the end of a Markdown file, with what they were measured under."""
    settings = " ".join(f"{key}={value}" for key, value in vars(config).items() if key != "output")
    facts = ", ".join(f"{key} {value}" for key, value in environment().items())
    head = f"# `{name}`, {datetime.now(UTC):%Y-%m-%d}\n\n{facts}\n\n`{settings}`\n\n"
    with Path(config.output).open("a", encoding="utf-8") as file:
        file.write(head + "\n\n".join(table.markdown() for table in tables) + "\n\n")


def environment() -> dict[str, Any]:
    """Describe the machine and the libraries."""
    found = {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {**found, "vimaedit": f"{vimaedit.__version__} {commit.stdout.strip()}".strip()}


def processor() -> str:
    """Name the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def say(text: str) -> None:
    """Tell what is done now."""
    print(text, file=sys.stderr, flush=True)
