"""The cluster a run works on: connecting to Ray, and sizing actors so that no stage starves another."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import DataContext
from ray.exceptions import RayTaskError

from pipelines.config import EditJobConfig
from vimaedit.errors import ConfigError, VimaeditError

AUTO_THREADS = 4  # at most, and at most half of the cores, so that two actors never fight for them
# Batch size by the free memory of the device in GiB; CPUs gain nothing from larger batches.
CPU_BATCH = 4
GPU_BATCHES = ((60.0, 16), (30.0, 12), (14.0, 8), (0.0, 4))
LEAST_PROGRESS_TIMEOUT_S = 1800.0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How editing is placed: `num_actors` of None grows with the work. CPUs are logical ones, of one actor."""

    use_gpu: bool
    num_actors: int | None
    threads: int
    num_cpus: float

    @property
    def likely_actors(self) -> int:
        """How many actors to cut the work for."""
        return self.num_actors or max(1, int(_cluster_resources().get("GPU", 1)))

    @property
    def num_gpus(self) -> float:
        return 1.0 if self.use_gpu else 0.0


def connect(job: EditJobConfig) -> None:
    """Join the cluster that is named, else start a Ray of this process's own; a running connection is kept.

    An own Ray gets so many logical CPUs that the editing actors leave some for reading, encoding and writing.
    """
    if ray.is_initialized():
        return
    address = job.ray_address or os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=False)
        return
    cores = os.cpu_count() or 1
    actors = job.actors if isinstance(job.actors, int) else 1
    ray.init(
        address="local",
        num_cpus=actors * _threads(job, cores) + max(2, cores),
        include_dashboard=False,
        log_to_driver=False,
    )


def place(job: EditJobConfig) -> Placement:
    """Decide from the cluster's resources where and how widely to edit.

    Raises: ConfigError for device=cuda where an own Ray has no GPU, or more actors than a fixed cluster can host.
    """
    resources = _cluster_resources()
    gpus = resources.get("GPU", 0.0)
    use_gpu = job.device.startswith("cuda") or (job.device == "auto" and gpus >= 1)
    if use_gpu:
        if gpus < 1:
            raise ConfigError(f"device: got {job.device}, but the cluster has no GPU; allowed: auto, cpu")
        fixed = job.actors if isinstance(job.actors, int) else None
        return Placement(use_gpu=True, num_actors=fixed, threads=_threads(job, os.cpu_count() or 1), num_cpus=1.0)
    cpus = resources.get("CPU", 1.0)
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    largest_node = max((node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"]), default=1.0)
    threads = _threads(job, int(min(largest_node, os.cpu_count() or 1)))
    num_actors = job.actors if isinstance(job.actors, int) else max(1, int((cpus - 1) // threads))
    # One logical CPU stays free for the other stages. Threads are real, CPUs only steer placement.
    share = int(min(threads, max(cpus - 1, 0.5) / num_actors) * 100) / 100
    if share <= 0:
        raise ConfigError(f"actors: got {num_actors}, too many for {cpus:g} CPUs; allowed: at most {int((cpus - 1) * 100)}")
    # Ray takes fractions below one, whole numbers above.
    return Placement(use_gpu=False, num_actors=num_actors, threads=threads, num_cpus=share if share < 1 else int(share))


def auto_batch_size(device_gib: float | None) -> int:
    """Settle the batch size by the device's memory in GiB (None: CPU)."""
    if device_gib is None:
        return CPU_BATCH
    return next(size for least, size in GPU_BATCHES if device_gib >= least)


def set_engine(unit_seconds: float) -> None:
    """Set what the engine must do otherwise than by default. `unit_seconds`: the longest a unit may take."""
    context = DataContext.get_current()
    context.use_datasource_v2 = False
    context.target_max_block_size = None  # one block per task, whatever its size
    context.max_errored_blocks = 0
    context.actor_init_retry_on_errors = True
    context.max_consecutive_actor_init_deaths = 3
    context.execution_no_progress_timeout_s = max(LEAST_PROGRESS_TIMEOUT_S, 5 * unit_seconds)


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


def _cluster_resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def _threads(job: EditJobConfig, cores: int) -> int:
    # Independent of the number of actors: the number of threads may change rounding, that of actors must not.
    return job.threads if isinstance(job.threads, int) else min(AUTO_THREADS, max(1, cores // 2))
