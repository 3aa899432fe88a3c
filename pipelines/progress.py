"""How far a run is, counted row by row in one small actor, and when it is hopeless."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

logger = logging.getLogger(__name__)

STOP_WINDOW_ROWS = 200
POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class ProgressState:
    """Rows done in this attempt of `total`, by status."""

    done: int
    total: int
    counts: dict[str, int]


ProgressCallback = Callable[[ProgressState], None]


class ProgressCounter:
    """Counts finished rows and applies the stop rule to the last 200 of them."""

    def __init__(self, total: int, stop_failed_fraction: float) -> None:
        self.total = total
        self.stop_failed_fraction = stop_failed_fraction
        self.counts: Counter[str] = Counter()
        self.window: deque[str] = deque(maxlen=STOP_WINDOW_ROWS)
        self.reason: str | None = None

    def add(self, statuses: Sequence[str]) -> str | None:
        """Count rows; the reason to stop the run, if there is one and rows are left."""
        for status in statuses:
            self.counts[status] += 1
            self.window.append(status)
            if self.reason is None and self.counts.total() < self.total:
                self.reason = self._hopeless()
        return self.reason

    def _hopeless(self) -> str | None:
        done = self.counts.total()
        if done < STOP_WINDOW_ROWS:
            return None
        failed = sum(status in ("failed", "quarantined") for status in self.window)
        if failed > self.stop_failed_fraction * STOP_WINDOW_ROWS:
            return f"{failed} of the last {STOP_WINDOW_ROWS} rows failed (stop_failed_fraction={self.stop_failed_fraction})"
        if done == self.counts["rejected"]:
            return f"the first {done} rows were all rejected"
        return None

    def state(self) -> ProgressState:
        return ProgressState(done=self.counts.total(), total=self.total, counts=dict(self.counts))

    def stop_reason(self) -> str | None:
        return self.reason


def start_counter(total: int, stop_failed_fraction: float) -> Any:
    """Start the counter as an actor that takes no CPU from the work; a lost one starts again at zero."""
    return (
        ray.remote(ProgressCounter)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
        .remote(total, stop_failed_fraction)
    )


@contextmanager
def reporting(counter: Any, callback: ProgressCallback | None) -> Iterator[None]:
    """Pass the counter's state to the callback about once a second, from a thread, and once more at the end."""
    if callback is None:
        yield
        return
    finished = threading.Event()

    def poll() -> None:
        while not finished.wait(POLL_S):
            try:
                callback(ray.get(counter.state.remote()))
            except ray.exceptions.RayError as error:
                logger.warning("progress: %s", error)

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
    callback(ray.get(counter.state.remote()))
