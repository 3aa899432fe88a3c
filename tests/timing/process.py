"""What processes have used so far, CPU time and memory, by the operating system's own accounts (Linux), and whether memory grows."""

from __future__ import annotations

import ctypes
import os
import re
import resource
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WARM_SHARE = 0.2  # of the rows; caches fill up to there


def cpu_seconds() -> float:
    """Return the CPU seconds of this process, user and system, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_mb() -> float:
    """Return the memory this process holds now, MB."""
    return _status_mb("VmRSS")


def peak_mb() -> float:
    """Return the most memory this process has held at once since `forget_peak`, MB."""
    return _status_mb("VmHWM")


def forget_peak() -> None:
    """Let the peak begin anew at what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def give_back_memory() -> None:
    """Return what the C library keeps of freed memory to the operating system, where it can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def descendants(ancestor: int) -> list[int]:
    """Return the processes that a process has started, and those that these have started, as far as they still run."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            children.setdefault(int(status.read_text().rpartition(")")[2].split()[1]), []).append(int(status.parent.name))
    found: list[int] = []
    waiting = [ancestor]
    while waiting:
        own = children.get(waiting.pop(), [])
        found += own
        waiting += own
    return sorted(found)


def private_mb(process: int) -> float:
    """Return the memory that a process holds alone, without what it has mapped from files and shares, MB; 0 once it has ended."""
    try:
        return _status_mb("RssAnon", process)
    except OSError:
        return 0.0


def shared_mb(process: int) -> float:
    """Return the shared memory that a process has mapped and touched, MB; 0 once it has ended."""
    try:
        return _status_mb("RssShmem", process)
    except OSError:
        return 0.0


def process_name(process: int) -> str:
    """Return the command line of a process; nothing once it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _status_mb(field: str, process: int | str = "self") -> float:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found is not None else 0.0  # one that is ending has no memory left


@dataclass(frozen=True, kw_only=True)
class MemorySample:
    """Memory that processes hold alone, MB, when `rows` were edited: of the driver, of all editing actors, of all other workers."""

    rows: int
    driver_mb: float
    actors_mb: float
    workers_mb: float


def memory_sample(rows: int, actors: Collection[int]) -> MemorySample:
    """Look at this process, the editing `actors` and what else works for it."""
    others = [each for each in descendants(os.getpid()) if each not in actors and process_name(each).startswith("ray::")]
    return MemorySample(
        rows=rows,
        driver_mb=private_mb(os.getpid()),
        actors_mb=sum(private_mb(each) for each in actors),
        workers_mb=sum(private_mb(each) for each in others),
    )


def growth_mb(samples: Sequence[MemorySample], name: str) -> float | None:
    """Return by how many MB a column of the samples grows with 1000 rows, once the run is warm: a straight line's slope. None for too few."""
    last = samples[-1].rows
    warm = [each for each in samples if WARM_SHARE * last <= each.rows < last]
    rows, values = np.array([each.rows for each in warm]), np.array([getattr(each, name) for each in warm])
    return float(1000 * np.polyfit(rows, values, 1)[0]) if len({*rows.tolist()}) > 1 else None
