"""What jobs share that run on a cluster: its address, a quiet start, the signals, the progress line."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from jobs._cli.console import quiet_ray
from jobs._cli.progress import progress_line
from jobs._cli.signals import exit_on_signals

logger = logging.getLogger("jobs")
Config = TypeVar("Config")


def on_cluster(config: Config) -> Config:
    """Return the settings with the cluster that the environment names, as `ray job submit` and RayJob do, where they name none."""
    options = cast(Any, config)
    address = options.ray_address or os.environ.get("RAY_ADDRESS") or None
    return cast(Config, dataclasses.replace(options, ray_address=address))


def start(address: str | None, save_state: Callable[[str], None] | None = None) -> Callable[[], None]:
    """Say that Ray is started or joined, and keep it quiet; return what to call once it runs.

    Ray installs signal handlers of its own; `save_state` is what the job's do, see `exit_on_signals`.
    """
    is_own = address in (None, "local")
    logger.info("starting Ray" if is_own else f"joining the cluster at {address}")
    if is_own and os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        logger.warning(
            "RAY_AUTH_MODE=disabled: while this Ray runs, every user of this machine can run programs as you; leave it unset, and "
            "Ray asks its own processes for a token"
        )
    quiet_ray()
    return lambda: exit_on_signals(save_state)


@contextmanager
def progress(log_format: str, unit: str = "rows") -> Iterator[Callable[..., None]]:
    """Show a run's progress: the callback takes its state, and perhaps another unit to count in."""
    line = progress_line(log_format, unit)
    try:
        yield lambda state, unit=None: line(state.done, state.total, state.counts, unit)
    finally:
        line.close()


def warn(warnings: Sequence[str]) -> None:
    """Log what a run warns of, at its end."""
    for warning in warnings:
        logger.warning("%s", warning)
