from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.cluster import room as shrinking
from pipelines.cluster.place import Placement
from pipelines.cluster.private import ActorPoolMapOperator
from pipelines.cluster.room import ClusterShrank, RoomPolicy, RoomWatch, room_policies
from pipelines.store.patience import ROOM_LOOK_S, SHRUNK_S

OPTIONS: dict[str, Any] = {"num_actors": 2, "likely_actors": 2, "threads": 1, "num_cpus": 1.0}


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
    assert cluster.looks == 100 / ROOM_LOOK_S
    assert cluster.held == 0
    cluster.cpus = 2
    cluster.step(watch, SHRUNK_S)
    assert cluster.held >= SHRUNK_S - ROOM_LOOK_S  # nothing is begun meanwhile
    with pytest.raises(ClusterShrank, match="^2 CPUs are left of 3 at least; placing the editing actors anew$"):
        cluster.step(watch, 2 * ROOM_LOOK_S)


def test_a_node_that_is_replaced_in_time_ends_nothing_and_neither_does_a_cluster_without_any() -> None:
    cluster = Cluster()
    watch = cluster.watch(3)
    for cpus in (2.0, 3.0, 2.0, 4.0):
        cluster.cpus = cpus
        cluster.step(watch, SHRUNK_S)
        assert watch.has_room() == (cpus >= 3)
    cluster.cpus = 0.0  # nothing to place anything on; nodes may come
    cluster.step(watch, 3 * SHRUNK_S)


def policy(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, placement: Placement, num_actors: int) -> RoomPolicy:
    """The policy as Ray Data makes it, over a cluster whose CPUs come and go."""
    monkeypatch.setattr(shrinking, "cluster_cpus", cluster.offered)
    (make,) = room_policies(placement, num_actors)
    made = make(None, None, None)
    made.watch.clock = lambda: cluster.now
    made.watch.next_look = cluster.now
    return made


def test_actors_are_held_back_and_what_is_edited_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    actors, write = object.__new__(ActorPoolMapOperator), object()
    cluster = Cluster()
    held = policy(monkeypatch, cluster, Placement(use_gpu=False, **OPTIONS), 2)
    assert held.can_add_input(actors) and held.can_add_input(write)
    cluster.cpus, cluster.now = 2, cluster.now + ROOM_LOOK_S
    assert not held.can_add_input(actors) and held.can_add_input(write)
    cluster.cpus, cluster.now = 3, cluster.now + ROOM_LOOK_S
    assert held.can_add_input(actors)


def test_a_pool_that_is_given_up_is_ended_whatever_waits_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    actors = object.__new__(ActorPoolMapOperator)
    actors._actor_pool = SimpleNamespace(shutdown=lambda force: ended.append(force))
    cluster = Cluster()
    held = policy(monkeypatch, cluster, Placement(use_gpu=False, **OPTIONS), 2)
    assert held.can_add_input(actors)
    cluster.cpus, cluster.now = 2, cluster.now + ROOM_LOOK_S
    assert not held.can_add_input(actors) and ended == []
    cluster.now += SHRUNK_S
    with pytest.raises(ClusterShrank):
        held.can_add_input(object())  # whichever stage is asked for
    assert ended == [True]


def test_a_pool_that_a_few_units_made_smaller_needs_less_room(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    held = policy(monkeypatch, cluster, Placement(use_gpu=False, **OPTIONS), 1)
    cluster.cpus, cluster.now = 2, cluster.now + ROOM_LOOK_S
    assert held.can_add_input(object.__new__(ActorPoolMapOperator))


def test_only_pools_on_cpus_are_watched() -> None:
    assert room_policies(Placement(use_gpu=True, **OPTIONS), 2) == []
    assert room_policies(Placement(use_gpu=False, **OPTIONS), None) == []
