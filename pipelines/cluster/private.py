"""What is used of Ray that Ray does not promise to keep: nothing public does it. To be looked at whenever Ray's version changes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode  # type: ignore[attr-defined]
from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.exceptions import AuthenticationError

__all__ = [
    "ActorPoolMapOperator",
    "BackpressurePolicy",
    "ask_first",
    "autoscaler_limits",
    "end_pool",
    "on_loopback",
    "token_text",
]

TOKEN_PLACES = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"


def ask_first(context: DataContext, policies: Sequence[Any]) -> None:
    """Let the engine ask policies of one's own before it gives an operator more; of its own, the first to refuse is the last asked."""
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*policies, *ENABLED_BACKPRESSURE_POLICIES])


def end_pool(operator: ActorPoolMapOperator) -> None:
    """Kill the actors of a pool, whatever waits at them; the engine itself only lets go of them."""
    operator._actor_pool.shutdown(force=True)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let a Ray that is started meanwhile call itself by the loopback address, as it does where it makes no clusters of machines:
    what listens for its own processes listens there then."""
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    variable = os.environ.get(name)
    os.environ[name] = "0"  # for the processes that it starts
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if variable is None:
            del os.environ[name]
        else:
            os.environ[name] = variable


def token_text() -> str:
    """Say what a cluster that asks for a token is told from here: to one that is not its own it answers as if it were away."""
    try:
        has_token = AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    except AuthenticationError as error:  # a file that is named and not there
        return str(error).split(". ")[0]
    if not has_token:
        return f"there is no token here, which it may ask for: {TOKEN_PLACES}"
    if get_authentication_mode() != AuthenticationMode.TOKEN:
        return "the token that is here is not sent, since RAY_AUTH_MODE=disabled"
    return f"it may ask for another token than the one that is here: {TOKEN_PLACES}"


def autoscaler_limits() -> dict[str, int] | None:
    """Return the resources that an autoscaler may bring the cluster to; None where it tells nothing, as not every one does."""
    limits: dict[str, int] | None = ray._private.state.state.get_max_resources_from_cluster_config()
    return limits
