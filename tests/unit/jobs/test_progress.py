"""The progress line: its rate, its time left, and how often it speaks."""

from __future__ import annotations

import io
import logging

from jobs._cli.progress import LogHandler, ProgressLine


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


def test_all_done_is_said_once_and_other_work_begins_a_line() -> None:
    stream, clock = Terminal(), Clock()
    progress = ProgressLine(stream, clock=clock)
    for done, total in ((249, 250), (250, 250), (250, 250)):
        clock.now += 2.0
        progress(done, total)
    progress(1, 2)  # rows that are done again
    progress(2, 2, unit="scores")
    progress.close()
    lines = [line.split("\r")[-1].split("] ")[1].split(",")[0] for line in stream.getvalue().split("\n") if line]
    assert lines == ["250/250 rows (100%)", "1/2 rows (50%)", "2/2 scores (100%)"]
    assert "249/250 rows (99%)" in stream.getvalue() and stream.getvalue().count("100%") == 2


def test_lines_of_the_log_stand_above_the_progress() -> None:
    stream, clock = Terminal(), Clock()
    progress = ProgressLine(stream, clock=clock)
    progress(1, 7)
    LogHandler(stream).emit(logging.makeLogRecord({"msg": "a warning"}))
    clock.now += 1.0
    progress(2, 7)
    wiped, drawn = stream.getvalue().split("\n")
    assert wiped.endswith("\ra warning") and wiped.split("\r")[2].strip() == "" and "2/7 rows" in drawn
    progress.close()
    LogHandler(stream).emit(logging.makeLogRecord({"msg": "the end"}))
    assert stream.getvalue().endswith("rows/s, 0:02 left\nthe end\n")


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
