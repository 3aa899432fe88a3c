"""How far a run is, counted row by row in one small actor, and when it is hopeless."""

from __future__ import annotations

import functools
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from pipelines.cluster.losses import Losses, Outcome, add_losses, count_losses
from pipelines.cluster.progress import ProgressCallback, ProgressState
from pipelines.cluster.small import start_actor
from pipelines.cluster.telemetry import observe_rows_left

logger = logging.getLogger(__name__)

STOP_WINDOW_ROWS = 200
POLL_S = 1.0


Report = Callable[[str, int, Sequence[Outcome]], str | None]  # unit, rows of it reported before, rows -> reason to stop


class ProgressCounter:
    """Counts finished rows, and applies the stop rule to the last 200 of them in the order of the plan.

    Rows that were stopped while reading are finished at once, edited ones take their time, and with many actors the quick ones
    would be the first 200 of any run. So a unit's rows are judged after those of all units before it: the verdict is that of one
    actor that takes the units in turn, and late by the time that the units in work take.
    """

    def __init__(self, unit_rows: Mapping[str, int], stop_failed_fraction: float) -> None:
        self.unit_rows = unit_rows  # how many rows each unit has, in the plan's order
        self.total = sum(unit_rows.values())
        self.stop_failed_fraction = stop_failed_fraction
        self.counts: Counter[str] = Counter()
        self.losses: Losses = {}
        self.finished = dict.fromkeys(unit_rows, 0)
        self.unjudged: dict[str, list[str]] = {unit: [] for unit in unit_rows}
        self.order = iter(unit_rows)
        self.front = next(self.order, None)
        self.judged: Counter[str] = Counter()
        self.window: deque[str] = deque(maxlen=STOP_WINDOW_ROWS)
        self.reason: str | None = None

    def add(self, unit: str, start: int, outcomes: Sequence[Outcome]) -> str | None:
        """Count rows of a unit, of which `start` were reported before; the reason to stop the run, if there is one.

        A unit that is done again, since its actor died, counts once.
        """
        new = outcomes[max(0, self.finished[unit] - start) :]
        statuses = [status for status, _, _ in new]
        self.finished[unit] += len(new)
        self.counts.update(statuses)
        self.losses = add_losses([self.losses, count_losses(new)])
        self.unjudged[unit].extend(statuses)
        self._judge()
        observe_rows_left(self.total - self.counts.total())
        return self.reason

    def _judge(self) -> None:
        while self.front is not None:
            for status in self.unjudged[self.front]:
                self.judged[status] += 1
                self.window.append(status)
                # With no row left there is nothing to stop: the run is judged at its end.
                if self.reason is None and self.counts.total() < self.total:
                    self.reason = self._hopeless()
            self.unjudged[self.front] = []
            if self.finished[self.front] < self.unit_rows[self.front]:
                return
            self.front = next(self.order, None)

    def _hopeless(self) -> str | None:
        num_judged = self.judged.total()
        if num_judged < STOP_WINDOW_ROWS:
            return None
        failed = sum(status in ("failed", "quarantined") for status in self.window)
        if failed > self.stop_failed_fraction * STOP_WINDOW_ROWS:
            return f"{failed} of the last {STOP_WINDOW_ROWS} rows failed (stop_failed_fraction={self.stop_failed_fraction})"
        if num_judged == self.judged["rejected"]:
            return f"the first {num_judged} rows were all rejected"
        return None

    def state(self) -> ProgressState:
        return ProgressState(done=self.counts.total(), total=self.total, counts=dict(self.counts), losses=self.losses)

    def stop(self, reason: str) -> None:
        """End the run at the next report of its actors."""
        self.reason = self.reason or reason

    def stop_reason(self) -> str | None:
        return self.reason


def start_counter(unit_rows: Mapping[str, int], stop_failed_fraction: float) -> Any:
    """Start the counter of a run."""
    return start_actor(ProgressCounter, unit_rows, stop_failed_fraction)


def report_to(counter: Any) -> Report:
    """Return what an editing actor calls to report finished rows to the counter of its run."""
    return functools.partial(_report, counter)


def _report(counter: Any, unit: str, start: int, outcomes: Sequence[Outcome]) -> str | None:
    reason: str | None = ray.get(counter.add.remote(unit, start, outcomes))
    return reason


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
