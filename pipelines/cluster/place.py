"""The cluster a run works on: connecting to Ray, and sizing actors so that no stage starves another."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (  # where policies of one's own are to be named
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
)
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.options import Place
from vimaedit.config import NEEDS_GPU
from vimaedit.errors import ConfigError, VimaeditError

AUTO_THREADS = 4  # at most, and at most half of the cores, so that two actors never fight for them
# Batch size by the free memory of the device in GiB; CPUs gain nothing from larger batches.
CPU_BATCH = 4
GPU_BATCHES = ((60.0, 16), (30.0, 12), (14.0, 8), (0.0, 4))
LEAST_PROGRESS_TIMEOUT_S = 1800.0
MANY_GPUS = 1024  # an autoscaler's limit beyond it is none, and nothing to cut the work by
CONNECT_TIMEOUT_S = 10.0
ADDRESS = re.compile(r"(ray://)?(?P<host>[^/@\s]+):(?P<port>\d+)")
ADDRESSES = "allowed: HOST:PORT of a running cluster, auto, local, or leave it out for a Ray of this process's own"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a cluster offers: CPUs and GPUs now, the CPUs of its largest node, and the GPUs it may grow to (None: unknown)."""

    cpus: float
    gpus: float
    node_cpus: float
    most_gpus: float | None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How editing is placed: `num_actors` of None grows with the work. CPUs are logical ones, of one actor.

    `likely_actors`: how many actors to cut the work for. `waits`: the first GPU has yet to come.
    """

    use_gpu: bool
    num_actors: int | None
    likely_actors: int
    threads: int
    num_cpus: float
    waits: bool = False
    warning: str | None = None

    @property
    def num_gpus(self) -> float:
        return 1.0 if self.use_gpu else 0.0


def connect(where: Place) -> None:
    """Join the cluster that is named, else start a Ray of this process's own; a running connection is kept.

    An own Ray gets so many logical CPUs that the editing actors leave some for reading, encoding and writing.

    Raises: ConfigError where the named cluster cannot be reached.
    """
    if ray.is_initialized():
        return
    if _joins(where):
        address = str(where.ray_address)
        check_reachable(address)
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"ray_address: got {address!r}, which cannot be joined ({error}); {ADDRESSES}") from error
        return
    cores = os.cpu_count() or 1
    actors = where.actors if isinstance(where.actors, int) else 1
    ray.init(
        address="local",
        num_cpus=actors * _threads(where, cores) + max(2, cores),
        include_dashboard=False,
        log_to_driver=False,
    )


def _joins(where: Place) -> bool:
    return where.ray_address not in (None, "", "local")


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
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(f"ray_address: got {address!r}, where nobody answers ({error}); {ADDRESSES}") from error


def look_at_cluster(where: Place) -> Cluster:
    """Ask Ray what there is."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    gpus = resources.get("GPU", 0.0)
    most_gpus: float | None = gpus
    if _joins(where) and not str(where.ray_address).startswith("ray://"):
        # Ray's only record of what an autoscaler may add; not every autoscaler fills it in.
        limits = ray._private.state.state.get_max_resources_from_cluster_config()
        most_gpus = None if limits is None else max(gpus, limits.get("GPU", 0))
    return Cluster(
        cpus=resources.get("CPU", 1.0),
        gpus=gpus,
        node_cpus=max((node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"]), default=1.0),
        most_gpus=most_gpus,
    )


def place(where: Place, cluster: Cluster, *, compiled: bool = False) -> Placement:
    """Decide from what a cluster offers where and how widely to work. `compiled`: the passes are, which takes a GPU.

    Raises: ConfigError for device=cuda where no GPU can come, `compiled` where none is used, or more actors than the cluster can
    ever host.
    """
    if where.device == "cuda" or (where.device == "auto" and cluster.gpus >= 1):
        return _place_on_gpus(where, cluster)
    if compiled:
        raise ConfigError(NEEDS_GPU)
    warning = None
    if where.device == "auto" and cluster.most_gpus != 0:
        warning = "device=auto: the cluster has no GPU now, so the CPU edits; device=cuda waits until one has come"
    threads = _threads(where, int(min(cluster.node_cpus, os.cpu_count() or 1)))
    num_actors = where.actors if isinstance(where.actors, int) else max(1, int((cluster.cpus - 1) // threads))
    # One logical CPU stays free for the other stages. Threads are real, CPUs only steer placement.
    share = int(min(threads, max(cluster.cpus - 1, 0.5) / num_actors) * 100) / 100
    if share <= 0:
        allowed = int((cluster.cpus - 1) * 100)
        raise ConfigError(f"actors: got {num_actors}, too many for {cluster.cpus:g} CPUs; allowed: at most {allowed}")
    return Placement(
        use_gpu=False,
        num_actors=num_actors,
        likely_actors=num_actors,
        threads=threads,
        num_cpus=share if share < 1 else int(share),  # Ray takes fractions below one, whole numbers above
        warning=warning,
    )


def _place_on_gpus(where: Place, cluster: Cluster) -> Placement:
    now, most = cluster.gpus, cluster.most_gpus
    if most is not None and most < 1:
        raise ConfigError(f"device: got {where.device}, but the cluster has no GPU and gets none; allowed: auto, cpu")
    fixed = where.actors if isinstance(where.actors, int) else None
    warning = None
    if fixed is not None and fixed > now:
        if most is not None and fixed > most:
            raise ConfigError(
                f"actors: got {fixed}, one GPU each; allowed: at most {int(most)}, the GPUs of the cluster, or auto"
            )
        warning = f"actors: {fixed} are asked for and {now:g} GPUs are there now; the others start as GPUs come"
    return Placement(
        use_gpu=True,
        num_actors=fixed,
        likely_actors=fixed or max(1, int(now if most is None or most > MANY_GPUS else most)),
        threads=_threads(where, os.cpu_count() or 1),
        num_cpus=1.0,
        waits=now < 1,
        warning=warning,
    )


def place_again(where: Place, threads: int) -> Placement:
    """Decide anew, for what a cluster has left, where to work; the threads of an actor are settled.

    Raises: ConfigError as `place`.
    """
    return place(dataclasses.replace(where, threads=threads), look_at_cluster(where))


def auto_batch_size(device_gib: float | None, multiple: int = 1) -> int:
    """Settle the batch size by the device's memory in GiB (None: CPU), raised to a multiple."""
    size = CPU_BATCH if device_gib is None else next(size for least, size in GPU_BATCHES if device_gib >= least)
    return -(-size // multiple) * multiple


def set_engine(unit_seconds: float, policies: Sequence[Any] = ()) -> None:
    """Set what the engine must do otherwise than by default. `unit_seconds`: the longest a unit may take.

    `policies` make what the engine asks, beside its own policies, before it gives an operator more.
    """
    context = DataContext.get_current()
    context.use_datasource_v2 = False
    context.target_max_block_size = None  # one block per task, whatever its size
    context.max_errored_blocks = 0
    context.actor_init_retry_on_errors = True
    context.max_consecutive_actor_init_deaths = 3
    # Ahead of the others, of which the first to refuse is the last to be asked.
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*policies, *ENABLED_BACKPRESSURE_POLICIES])
    context.execution_no_progress_timeout_s = max(LEAST_PROGRESS_TIMEOUT_S, 5 * unit_seconds)


def start_actor(kind: type[Any], *arguments: Any) -> Any:
    """Start a small actor that takes no CPU from the work, on the driver's own node, which no run outlives.

    Ray keeps no record of its calls: there are thousands in a run, and each would stay in the head's memory.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(kind).options(**options, enable_task_events=False).remote(*arguments)


def end_actor(actor: Any) -> None:
    """End a small actor with the run that it served: Ray Data's records of the run hold on to it, and a process may make many runs."""
    if ray.is_initialized():  # else it is gone, as Ray is
        ray.kill(actor)


def get(reference: Any) -> Any:
    """`ray.get`, giving back the project's own errors as they were raised on the worker."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
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


def _threads(where: Place, cores: int) -> int:
    # Independent of the number of actors: the number of threads may change rounding, that of actors must not.
    return where.threads if isinstance(where.threads, int) else min(AUTO_THREADS, max(1, cores // 2))
