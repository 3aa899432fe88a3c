"""The progress line: its rate, its time left, and how often it speaks."""

from __future__ import annotations

import io

from jobs._cli.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_a_line_every_ten_seconds_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = ProgressLine(stream, clock=clock)
    for done in range(1, 24):
        clock.now += 1.0
        progress(done, 23, {"ok": done - 1, "rejected": 1, "failed": 0})
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines == [
        "1/23 rows (4%), 1.00 rows/s, 0:22 left, 1 rejected",
        "11/23 rows (48%), 1.00 rows/s, 0:12 left, 1 rejected",
        "21/23 rows (91%), 1.00 rows/s, 0:02 left, 1 rejected",
        "23/23 rows (100%), 1.00 rows/s, 1 rejected",
    ]


def test_on_a_terminal_one_line_is_redrawn() -> None:
    stream, clock = Terminal(), Clock()
    progress = ProgressLine(stream, unit="steps", clock=clock)
    for done in (1, 3, 7):
        clock.now += 2.0
        progress(done, 7)
    progress.close()
    *_, last = stream.getvalue().rstrip("\n").split("\r")
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().count("\r") == 3
    assert last.rstrip() == f"[{'#' * 28}] 7/7 steps (100%), 1.17 steps/s"


def test_the_rate_forgets_a_slow_start() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = ProgressLine(stream, clock=clock)
    clock.now += 600.0  # the model loads
    for done in range(0, 200, 2):
        clock.now += 1.0
        progress(done, 1_000)
    assert stream.getvalue().splitlines()[-1] == "180/1000 rows (18%), 2.00 rows/s, 6:50 left"


def test_hours_are_written_out() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = ProgressLine(stream, clock=clock)
    clock.now += 10.0
    progress(10, 7_331)
    assert "2:02:01 left" in stream.getvalue()
