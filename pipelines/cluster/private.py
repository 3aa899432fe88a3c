"""What is used of Ray that Ray does not promise to keep: nothing public does it. To be looked at whenever Ray's version changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

__all__ = ["ActorPoolMapOperator", "BackpressurePolicy", "ask_first", "autoscaler_limits"]


def ask_first(context: DataContext, policies: Sequence[Any]) -> None:
    """Let the engine ask policies of one's own before it gives an operator more; of its own, the first to refuse is the last asked."""
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*policies, *ENABLED_BACKPRESSURE_POLICIES])


def autoscaler_limits() -> dict[str, int] | None:
    """Return the resources that an autoscaler may bring the cluster to; None where it tells nothing, as not every one does."""
    limits: dict[str, int] | None = ray._private.state.state.get_max_resources_from_cluster_config()
    return limits
