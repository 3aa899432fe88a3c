"""Structured logs: one JSON object per line, with the ids of run, unit and records; nothing in it carries credentials.

A job formats the driver's lines, and `start_worker` those of the processes that Ray starts, which no job sets up.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pipelines.store.masking import CONTROLS, mask_urls, printable, printable_lines, without_secrets

PACKAGES = ("pipelines", "vimaedit")
_run: dict[str, str] = {}  # what this process works on
_unit: ContextVar[Mapping[str, str] | None] = ContextVar("unit", default=None)  # what this thread works on


class TextFormatter(logging.Formatter):
    """Formats a record for people: no credentials, and no name or text that forges a line or steers a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(mask_urls(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:
        return printable_lines(mask_urls(super().formatException(ei)))


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON. `extra={"fields": {...}}` adds fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "host": platform.node(),
            "pid": os.getpid(),
            **_run,
            **(_unit.get() or {}),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = json.dumps(without_secrets(line), ensure_ascii=False)
        return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)  # JSON itself quotes some of them only


def set_run(run: str, attempt: str) -> None:
    """Let this process's lines name the run (its plan's digest, as in the footer of every part) and the attempt at it."""
    _run.update(run=run, attempt=attempt)


def start_worker(run: str, attempt: str, log_format: str) -> None:
    """Let a worker process log as its run asks; it may come from another run or be called again and again."""
    set_run(run, attempt)
    if log_format != "json":
        if logging.lastResort is not None:  # what writes warnings of processes that nobody has set up
            logging.lastResort.setFormatter(TextFormatter())
        return
    for name in PACKAGES:
        logger = logging.getLogger(name)
        if not any(isinstance(handler.formatter, JsonFormatter) for handler in logger.handlers):
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(JsonFormatter())
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False


@contextmanager
def about(unit: str, path: str) -> Iterator[None]:
    """Let this thread's lines name the unit that it works on, and its input file."""
    token = _unit.set({"unit": unit, "file": path})
    try:
        yield
    finally:
        _unit.reset(token)


def fields(event: str, names: Sequence[Mapping[str, Any]] = (), /, **more: Any) -> dict[str, Any]:
    """Return what a line says beside its text, as `extra` of a logging call: the event, names of rows, and numbers."""
    return {"fields": {"event": event, **({"records": names} if names else {}), **more}}
