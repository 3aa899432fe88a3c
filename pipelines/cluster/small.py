"""Small actors beside the work. Nothing here loads Ray Data, which would cost each of them a second."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.store.patience import NO_LIMIT


def start_actor(kind: type[Any], *arguments: Any) -> Any:
    """Start a small actor that takes no CPU from the work, on the driver's own node, which no run outlives.

    Ray keeps no record of its calls: there are thousands in a run, and each would stay in the head's memory.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": NO_LIMIT, "max_task_retries": NO_LIMIT, "scheduling_strategy": here}
    return ray.remote(kind).options(**options, enable_task_events=False).remote(*arguments)


def end_actor(actor: Any) -> None:
    """End a small actor with the run that it served: Ray Data's records of the run hold on to it, and a process may make many runs."""
    if ray.is_initialized():  # else it is gone, as Ray is
        ray.kill(actor)
