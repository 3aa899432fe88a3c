"""Numbered work on Ray Data: each number a task of its own, or done by actors that keep what they have loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from pipelines.cluster.place import Placement
from pipelines.cluster.session import own_errors


def numbered(count: int, call: Callable[..., pa.Table], **arguments: Any) -> ray.data.Dataset:
    """Let tasks call a function with tables whose column `id` has the numbers from 0 on, one number each."""
    numbers = ray.data.range(count, override_num_blocks=count)
    return numbers.map_batches(functools.partial(call, **arguments), batch_size=None, batch_format="pyarrow")


def run_actors(count: int, kind: type[Any], arguments: tuple[Any, ...], placement: Placement, *, needs_device: bool) -> None:
    """As `numbered`, by as many actors as the editing run would have: so many as were asked for, or growing with the work.

    Raises: the project's own errors as the workers raised them.
    """
    if placement.num_actors is None:
        pool = ActorPoolStrategy(min_size=1, max_size=count, max_tasks_in_flight_per_actor=2)
    else:
        pool = ActorPoolStrategy(size=min(placement.num_actors, count), max_tasks_in_flight_per_actor=1)
    run_through(
        ray.data.range(count, override_num_blocks=count).map_batches(
            kind,
            fn_constructor_args=arguments,
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=placement.num_cpus,
            num_gpus=(placement.num_gpus if needs_device else 0) or None,
        )
    )


def run_through(dataset: ray.data.Dataset) -> list[dict[str, Any]]:
    """Run a data set and return its rows, which are small. Raises: the project's own errors as the workers raised them."""
    with own_errors():
        return list(dataset.iter_rows())
