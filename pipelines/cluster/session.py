"""The Ray that a run works with: joining or starting it, its settings, and what comes back from workers."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.data import DataContext
from ray.exceptions import AuthenticationError, RayTaskError

from pipelines.cluster.place import Cluster, actor_threads
from pipelines.cluster.private import ask_first, autoscaler_limits, on_loopback, token_text
from pipelines.options import Place
from pipelines.store.patience import CONNECT_S, ENGINE_START_TRIES, NO_PROGRESS_S, NO_PROGRESS_UNITS
from vimaedit.errors import ConfigError, VimaeditError

SHUFFLE_BYTES = 128 * 2**20  # that a task of a shuffle holds before it hands them on; a gigabyte by default
ADDRESS = re.compile(r"(ray://)?(?P<host>[^/@\s]+):(?P<port>\d+)")
ADDRESSES = "allowed: HOST:PORT of a running cluster, auto, local, or leave it out for a Ray of this process's own"


def connect(where: Place) -> None:
    """Join the cluster that is named, else start a Ray of this process's own; a running connection is kept.

    An own Ray gets so many logical CPUs that the editing actors leave some for reading, encoding and writing.

    Raises: ConfigError where the named cluster cannot be reached.
    """
    if ray.is_initialized():
        return
    address = str(where.ray_address) if _joins(where) else "local"
    if address != "local":
        check_reachable(address)
    try:
        if address == "local":
            _start(where)
        else:
            ray.init(address=address, log_to_driver=False)
    except AuthenticationError as error:
        raise ConfigError(f"ray_address: got {address!r}, which cannot be joined or started: {token_text()}") from error
    except (ConnectionError, ValueError) as error:
        if address == "local":
            raise
        reason = f"{error}; {token_text()}"
        raise ConfigError(f"ray_address: got {address!r}, which cannot be joined ({reason}); {ADDRESSES}") from error


def _start(where: Place) -> None:
    cores = os.cpu_count() or 1
    actors = where.actors if isinstance(where.actors, int) else 1
    with on_loopback():
        ray.init(
            address="local",
            num_cpus=actors * actor_threads(where, cores) + max(2, cores),
            include_dashboard=False,
            log_to_driver=False,
        )


def check_reachable(address: str) -> None:
    """Knock at the cluster's port: Ray itself would try an address where nobody answers for minutes.

    Raises: ConfigError where nobody does, or for what is no address.
    """
    if address == "auto":
        return
    named = ADDRESS.fullmatch(address)
    if named is None:
        raise ConfigError(f"ray_address: got {address!r}; {ADDRESSES}")
    host, port = named["host"].strip("[]"), int(named["port"])
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(f"ray_address: got {address!r}, where nobody answers ({error}); {ADDRESSES}") from error


def look_at_cluster(where: Place) -> Cluster:
    """Ask Ray what there is."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    gpus = resources.get("GPU", 0.0)
    most_gpus: float | None = gpus
    if _joins(where) and not str(where.ray_address).startswith("ray://"):
        limits = autoscaler_limits()
        most_gpus = None if limits is None else max(gpus, limits.get("GPU", 0))
    return Cluster(
        cpus=resources.get("CPU", 1.0),
        gpus=gpus,
        node_cpus=max((node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"]), default=1.0),
        most_gpus=most_gpus,
    )


def set_engine(unit_seconds: float, policies: Sequence[Any] = ()) -> None:
    """Set what the engine must do otherwise than by default. `unit_seconds`: the longest a unit may take.

    `policies` make what the engine asks, beside its own policies, before it gives an operator more.
    """
    context = DataContext.get_current()
    context.use_datasource_v2 = False
    context.target_max_block_size = None  # one block per task, whatever its size
    context.shuffle_input_batch_bytes = SHUFFLE_BYTES
    context.max_errored_blocks = 0
    context.actor_init_retry_on_errors = True
    context.max_consecutive_actor_init_deaths = ENGINE_START_TRIES
    ask_first(context, policies)
    context.execution_no_progress_timeout_s = max(NO_PROGRESS_S, NO_PROGRESS_UNITS * unit_seconds)


def get(reference: Any) -> Any:
    """`ray.get`, giving back the project's own errors as they were raised on the worker."""
    with own_errors():
        return ray.get(reference)


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise the project's own errors as they were raised on the worker."""
    try:
        yield
    except Exception as error:
        own = own_error(error)
        if own is None:
            raise
        raise own from None


def own_error(error: BaseException) -> VimaeditError | None:
    """Find the project's own error among the causes that Ray wraps around it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None)
        if isinstance(cause, VimaeditError):
            return cause
        if isinstance(error, VimaeditError) and not isinstance(error, RayTaskError):
            return error
        error = cause if isinstance(cause, BaseException) else error.__cause__ or error.__context__  # type: ignore[assignment]
    return None


def _joins(where: Place) -> bool:
    return where.ray_address not in (None, "", "local")
