"""What this process has used so far: CPU time and memory, by the operating system's own accounts (Linux)."""

from __future__ import annotations

import re
import resource
from pathlib import Path


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


def _status_mb(field: str) -> float:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6
