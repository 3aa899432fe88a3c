"""The console of a job: its own words. What Ray says stands in Ray's log files.

Ray's Python parts speak through loggers. Its core, in C++, writes errors to file descriptor 2, past every logger; one of them says
that nothing is wrong, whenever Ray Data starts an actor. That one is left out, and all else stays: such lines may be the last words
of a process that the core ends. So they pass through a process of their own, which outlives this one.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import subprocess
import sys

from jobs._cli import signals

HARMLESS = rb"core_worker\.cc:\d+: Actor with class name: .* has constructor arguments in the object store"
FILTER = f"""
import re, sys
for line in sys.stdin.buffer:
    if not re.search({HARMLESS!r}, line):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""
WAIT_S = 5.0


def own_stderr() -> None:
    """Give Python's stderr a descriptor of its own, so that descriptor 2 can go another way; not where tests have replaced it."""
    stderr = sys.stderr
    if isinstance(stderr, io.TextIOWrapper) and stderr is sys.__stderr__ and stderr.fileno() == signals.STDERR:
        signals.console = os.dup(signals.STDERR)
        sys.stderr = io.TextIOWrapper(os.fdopen(signals.console, "wb", 0), stderr.encoding, stderr.errors, write_through=True)


def quiet_ray() -> None:
    """Leave the console to the job, before Ray starts: only errors of Ray come through, everything goes to its log files.

    They lie in the folder `logs` of Ray's session: what its Python parts say in `ray-data`, what its core says beside it.
    """
    if signals.console != signals.STDERR:
        _filter_stderr()
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    core, data = logging.getLogger("ray"), logging.getLogger("ray.data")
    for handler in {*core.handlers, *data.handlers}:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)
        else:
            core.addHandler(handler)


def _filter_stderr() -> None:
    """Let descriptor 2 pass through the filter to the console."""
    command = [sys.executable, "-I", "-S", "-c", FILTER]
    passing = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=signals.console, start_new_session=True)
    assert passing.stdin is not None
    os.dup2(passing.stdin.fileno(), signals.STDERR)
    passing.stdin.close()

    def end() -> None:
        os.dup2(signals.console, signals.STDERR)  # the last end of the pipe on this side
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process that was started meanwhile may have one too
            passing.wait(WAIT_S)

    atexit.register(end)  # before Ray is imported, so after what Ray does at the end
