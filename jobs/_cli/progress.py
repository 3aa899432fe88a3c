"""A progress line with rate and time left: redrawn in place on a terminal, now and then a new line elsewhere."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import ClassVar, TextIO

logger = logging.getLogger(__name__)

REDRAW_S = 0.2
LINE_S = 10.0
RATE_WINDOW_S = 60.0  # the rate is that of the last minute, so that model loading does not count for ever
BAR_WIDTH = 28


class LogStream(io.StringIO):
    """Takes a progress line's text as lines of the log: a log of JSON lines has no room for others."""

    def write(self, text: str) -> int:
        if text.strip():
            logger.info("%s", text.strip())
        return len(text)


def progress_line(log_format: str, unit: str = "rows") -> ProgressLine:
    """Return the progress line of a job: on stderr, or as lines of a structured log."""
    return ProgressLine(sys.stderr if log_format == "text" else LogStream(), unit=unit)


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes lines of the log above the progress line that stands on the same terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        if ProgressLine.drawn is not None:
            ProgressLine.drawn.make_way()
        super().emit(record)


class ProgressLine:
    """Show how many of `total` units are done. Call it as often as there is news; it limits its own output.

    The line is ended where all are done. Fewer done than before, or another `unit`, begin the next one.
    """

    drawn: ClassVar[ProgressLine | None] = None  # the line that stands on the terminal, not yet ended

    def __init__(self, stream: TextIO, *, unit: str = "rows", clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._in_place = stream.isatty()
        self._unit = unit
        self._shown = ""
        self._shown_at = 0.0
        self._is_ended = False
        self._samples: deque[tuple[float, int]] = deque()
        self._begin(unit)

    def __call__(self, done: int, total: int, counts: Mapping[str, int] | None = None, unit: str | None = None) -> None:
        """Take in how many are done so far, of how many, and how many of them have each status."""
        if done < self._samples[-1][1] or (unit or self._unit) != self._unit:
            self.close()
            self._begin(unit or self._unit)
        if self._is_ended:
            return
        now = self._clock()
        if done != self._samples[-1][1]:
            self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > RATE_WINDOW_S:
            self._samples.popleft()
        due = now - self._shown_at >= (REDRAW_S if self._in_place else LINE_S)
        if due or done >= total:
            self._show(self._text(now, done, total, counts or {}))
            self._shown_at = now
        if done >= total:
            self.close()
            self._is_ended = True

    def close(self) -> None:
        """End the line, so that what follows starts on its own."""
        self._leave("\n")

    def make_way(self) -> None:
        """Wipe the line, for a line of the log; with the next news it is drawn again, below it."""
        self._leave(f"\r{'':<{len(self._shown)}}\r")

    def _leave(self, text: str) -> None:
        if self._in_place and self._shown:
            self._stream.write(text)
            self._stream.flush()
        self._shown, ProgressLine.drawn = "", None

    def _begin(self, unit: str) -> None:
        now = self._clock()
        self._unit = unit
        self._samples = deque([(now, 0)])
        self._shown_at = now - LINE_S
        self._is_ended = False

    def _text(self, now: float, done: int, total: int, counts: Mapping[str, int]) -> str:
        fraction = done / total if total else 1.0
        start, first = self._samples[0]
        rate = (done - first) / (now - start) if now > start and done > first else 0.0
        left = f", {_duration((total - done) / rate)} left" if rate and done < total else ""
        notes = "".join(f", {count} {status}" for status, count in counts.items() if count and status != "ok")
        bar = f"[{'#' * int(fraction * BAR_WIDTH):<{BAR_WIDTH}}] " if self._in_place else ""
        percent = 100 if done >= total else min(99, round(100 * fraction))
        return f"{bar}{done}/{total} {self._unit} ({percent}%), {rate:.2f} {self._unit}/s{left}{notes}"

    def _show(self, text: str) -> None:
        if text == self._shown:
            return
        if self._in_place:
            ProgressLine.drawn = self
            self._stream.write(f"\r{text:<{len(self._shown)}}")
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()
        self._shown = text


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
