from __future__ import annotations

import pytest

from pipelines.resources import Placement
from pipelines.shrinking import LOOK_S, SHRUNK_S, ClusterShrank, RoomWatch, room_policies


class Cluster:
    """A cluster whose CPUs come and go, and a clock."""

    def __init__(self) -> None:
        self.cpus, self.now, self.looks, self.held = 4.0, 100.0, 0, 0

    def offered(self) -> float:
        self.looks += 1
        return self.cpus

    def watch(self, needed: float) -> RoomWatch:
        return RoomWatch(needed, self.offered, lambda: self.now)

    def step(self, watch: RoomWatch, seconds: float) -> None:
        """Let the engine take a step every second."""
        for _ in range(int(seconds)):
            self.now += 1
            self.held += not watch.has_room()


def test_a_pool_is_given_up_where_its_room_stays_away() -> None:
    cluster = Cluster()
    watch = cluster.watch(3)
    cluster.step(watch, 100)
    assert cluster.looks == 100 / LOOK_S
    assert cluster.held == 0
    cluster.cpus = 2
    cluster.step(watch, SHRUNK_S)
    assert cluster.held >= SHRUNK_S - LOOK_S  # nothing is begun meanwhile
    with pytest.raises(ClusterShrank, match="^2 CPUs are left of 3 at least; placing the editing actors anew$"):
        cluster.step(watch, 2 * LOOK_S)


def test_a_node_that_is_replaced_in_time_ends_nothing_and_neither_does_a_cluster_without_any() -> None:
    cluster = Cluster()
    watch = cluster.watch(3)
    for cpus in (2.0, 3.0, 2.0, 4.0):
        cluster.cpus = cpus
        cluster.step(watch, SHRUNK_S)
        assert watch.has_room() == (cpus >= 3)
    cluster.cpus = 0.0  # nothing to place anything on; nodes may come
    cluster.step(watch, 3 * SHRUNK_S)


def test_only_pools_on_cpus_are_watched() -> None:
    options = {"num_actors": 2, "likely_actors": 2, "threads": 1, "num_cpus": 1.0}
    assert room_policies(Placement(use_gpu=True, **options)) == []
