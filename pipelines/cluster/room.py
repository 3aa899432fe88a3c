"""A cluster that has lost nodes: where its CPUs no longer hold the editing actors and one task beside them, work stands still.

Ray starts the actors of a lost node again wherever there is room. On CPUs they take the room in which units are read and written, and
each stage waits for the other. The actors are given no further unit then, which could not be written; where no node comes back in time, the
pool is given up, and another made for what is left.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import ray

from pipelines.cluster.place import Placement
from pipelines.cluster.private import ActorPoolMapOperator, BackpressurePolicy, end_pool
from pipelines.store.patience import ROOM_LOOK_S, SHRUNK_S
from vimaedit.errors import VimaeditError

logger = logging.getLogger(__name__)


class ClusterShrank(VimaeditError):
    """The cluster has lost nodes, and what is left does not hold the pool."""


class RoomWatch:
    """Whether a cluster has room for a pool; `needed` CPUs are those of the actors and of one task."""

    def __init__(
        self,
        needed: float,
        offered: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.needed, self.offered, self.clock = needed, offered, clock
        self.next_look = clock()
        self.short_since: float | None = None

    def has_room(self) -> bool:
        """Look at the cluster now and then. Raises: ClusterShrank where the room has been missing for long."""
        now = self.clock()
        if now >= self.next_look:
            self.next_look = now + ROOM_LOOK_S
            self._look(now)
        return self.short_since is None

    def _look(self, now: float) -> None:
        cpus = self.offered()
        if cpus >= self.needed or cpus < 1:  # without any worker there is nothing to make another pool on
            self.short_since = None
        elif self.short_since is None:
            logger.warning("the cluster has %g CPUs left, and this run was placed on %g at least", cpus, self.needed)
            self.short_since = now
        elif now - self.short_since >= SHRUNK_S:
            raise ClusterShrank(f"{cpus:g} CPUs are left of {self.needed:g} at least; placing the editing actors anew")


class RoomPolicy(BackpressurePolicy):
    """Asked by Ray Data at each of its steps whether an operator may be given more."""

    def __init__(self, needed: float, *given: Any) -> None:
        super().__init__(*given)
        self.watch = RoomWatch(needed, cluster_cpus)
        self.pools: list[ActorPoolMapOperator] = []

    def can_add_input(self, op: Any) -> bool:
        """Hold the editing actors back without room; what they have edited may be written.

        Raises: ClusterShrank, once the pools are ended: an actor lives on while a unit waits at it that was lost with a node, and
        that waits to be read again for the CPU of the actor.
        """
        is_pool = isinstance(op, ActorPoolMapOperator)
        if is_pool and op not in self.pools:
            self.pools.append(op)
        try:
            return self.watch.has_room() or not is_pool
        except ClusterShrank:
            for pool in self.pools:
                end_pool(pool)
            raise


def room_policies(placement: Placement, num_actors: int | None) -> list[Callable[..., RoomPolicy]]:
    """Return what Ray Data calls for a watch over a pool of so many actors; none for GPUs, whose actors can only start where a GPU
    is, nor for a pool that grows (None)."""
    if placement.use_gpu or num_actors is None:
        return []
    # A small machine may not have had the CPU for the task from the start.
    stage_cpus = placement.stage_actors * placement.stage_cpus
    needed = min(num_actors * placement.num_cpus + stage_cpus + 1, cluster_cpus())
    return [functools.partial(RoomPolicy, needed)]


def cluster_cpus() -> float:
    """Count the CPUs of the living nodes."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get("CPU", 0.0)
