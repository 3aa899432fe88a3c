"""How a job leaves at SIGTERM or SIGINT. Imports nothing heavy: jobs call it before they import what takes seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from pipelines.exits import EXIT_INTERRUPTED

SAVE_STATE_S = 2.0
STDERR = 2
console = STDERR  # a descriptor of what the process was started with as its stderr, see console.py


def exit_on_signals(save_state: Callable[[str], None] | None = None) -> None:
    """Leave with exit code 4 at SIGTERM or SIGINT, after `save_state`, which is told the signal's name.

    Call it again after `ray.init`, which installs handlers of its own. Ray follows its SIGTERM with SIGKILL after three
    seconds, so `save_state` writes one small object at most and is not waited for any longer than two.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if save_state is not None:
            # In a thread, since what the signal interrupted may hold a lock that saving needs.
            saver = threading.Thread(target=save_state, args=(name,), daemon=True)
            saver.start()
            saver.join(SAVE_STATE_S)
        leave(name)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def leave(name: str) -> None:
    """End the process as interrupted by the signal of this name, without its exit handlers: they would wait for the cluster."""
    with contextlib.suppress(OSError):
        os.write(console, f"\ninterrupted by {name}\n".encode())
    os._exit(EXIT_INTERRUPTED)
