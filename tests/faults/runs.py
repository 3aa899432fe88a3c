"""Runs of `jobs.edit` as processes of their own, and what is to be said of one that was disturbed."""

from __future__ import annotations

import collections
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.store.location import list_files, locate, read_bytes

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURES = ("image", "edited_image", "edit_mask", "critical_mask")
SMALLEST = ("model=random", "steps=1", "actors=1", "threads=1")
TABLE_HEAD = ("fault", "rows requested", "rows out", "duplicates", "rows redone", "images equal", "seconds")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a disturbed run, beside the undisturbed one. `redone`: rows edited more than once, where it was counted."""

    requested: int
    rows: int
    duplicates: int
    equal: int
    redone: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every request has exactly one row, with the undisturbed run's pictures."""
        return self.rows == self.requested == self.equal and not self.duplicates

    def line(self, fault: str, seconds: float) -> tuple[str, ...]:
        """The outcome as a line of the fault table."""
        redone = "not counted" if self.redone is None else str(self.redone)
        return (
            fault,
            str(self.requested),
            str(self.rows),
            str(self.duplicates),
            redone,
            f"{self.equal} of {self.rows}",
            f"{seconds:.0f}",
        )


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that has ended."""

    code: int
    text: str
    errors: str
    seconds: float


def command(*words: str) -> list[str]:
    """The command line of one `jobs.edit`."""
    return [sys.executable, "-m", "jobs.edit", *words]


def environment(**more: str) -> dict[str, str]:
    """The environment of a job of this checkout."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **more}


@contextmanager
def started(words: Sequence[str], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start `jobs.edit`; both its outputs go to `log`. It is killed at the end if it still runs."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command(*words), cwd=REPOSITORY, env=environment(**variables), stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def run(*words: str, timeout_s: float = 280.0, **variables: str) -> Ended:
    """Run `jobs.edit` to its end."""
    began = time.monotonic()
    done = subprocess.run(
        command(*words), cwd=REPOSITORY, env=environment(**variables), capture_output=True, text=True, timeout=timeout_s
    )
    return Ended(code=done.returncode, text=done.stdout, errors=done.stderr, seconds=time.monotonic() - began)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[Any], log: Path, timeout_s: float = 240.0) -> None:
    """Wait until something has happened that a running process does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def num_parts(output: str) -> int:
    """Count the units that are written."""
    return len(list_files(locate(output) / "data", ".parquet"))


def rows_of(output: str, columns: Sequence[str] | None = None, num_files: int | None = None) -> list[dict[str, Any]]:
    """Read the rows of an output in the order of the input: all, or those of the first few input files."""
    folder = locate(output) / "data"
    end = "part-~" if num_files is None else f"part-{num_files:05d}"  # parts begin with the number of their file
    rows = [
        row
        for name, _ in list_files(folder, ".parquet")
        if name < end
        for row in pq.read_table(
            io.BytesIO(read_bytes(folder / name)), columns=None if columns is None else list(columns)
        ).to_pylist()
    ]
    return sorted(rows, key=identity)


def identity(row: Mapping[str, Any]) -> tuple[str, int, int]:
    """What names a request."""
    return row["input_file"], row["input_row"], row["edit_index"]


def compare(output: str, clean: str, redone: int | None = None, num_files: int | None = None) -> Outcome:
    """Put an output beside that of the undisturbed run; what does not depend on the run has to be equal in a row."""
    rows, wanted = rows_of(output, num_files=num_files), {identity(row): row for row in rows_of(clean)}
    found = {identity(row): row for row in rows}
    names = (*PICTURES, "status", "error_type", "seed", "id")
    equal = sum(key in wanted and all(row[name] == wanted[key][name] for name in names) for key, row in found.items())
    return Outcome(requested=len(wanted), rows=len(rows), duplicates=len(rows) - len(found), equal=equal, redone=redone)


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """Read the structured lines of all logs below a folder, in no order."""
    lines = []
    for path in sorted(folder.rglob("*.err")):
        for text in path.read_text(errors="replace").splitlines():
            if text.startswith('{"time"'):
                lines.append(json.loads(text))
    return lines


def rows_begun(folder: Path) -> int:
    """Count the edits that any process has begun, once for each time; runs need `log_format=json`."""
    return sum(len(line["records"]) for line in log_lines(folder) if line.get("event") == "batch_begun")


def kill(pids: Sequence[int]) -> None:
    """Kill processes by their ids; those that are gone already are no matter."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, 9)


@contextmanager
def serving(*words: str, pattern: str = r"http://\S+") -> Iterator[str]:
    """Run a server and yield the address that it prints; it ends with the block."""
    process = subprocess.Popen(
        words, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    # What it says later is read too: a server whose pipe is full stands still.
    rest = threading.Thread(target=collections.deque, args=(process.stdout, 0), daemon=True)
    try:
        for line in process.stdout:
            found = re.search(pattern, line)
            if found:
                break
        else:
            raise RuntimeError(f"{words} ended with {process.wait()} and named no address")
        rest.start()
        yield found.group()
    finally:
        process.kill()
        process.wait()
        if rest.is_alive():
            rest.join()
        process.stdout.close()


def table_text(lines: Sequence[Sequence[str]]) -> str:
    """The fault table as Markdown."""
    rows = [TABLE_HEAD, ["---"] * len(TABLE_HEAD), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
