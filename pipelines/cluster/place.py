"""Where work is placed: actors sized by what a cluster offers, so that no stage starves another."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from pipelines.options import Place
from vimaedit.config import NEEDS_GPU
from vimaedit.errors import ConfigError
from vimaedit.methods.options import Segmenter

AUTO_THREADS = 4  # at most, and at most half of the cores, so that two actors never fight for them
# Batch size by the memory of the device in GiB, for 512 px and a model whose weights take `WEIGHTS_GIB` with CLIP's; CPUs gain
# nothing from larger batches.
CANVAS_PX, WEIGHTS_GIB = 512, 6.0
CPU_BATCH = 4
GPU_BATCHES = ((60.0, 16), (30.0, 12), (14.0, 8), (0.0, 4))
MANY_GPUS = 1024  # an autoscaler's limit beyond it is none, and nothing to cut the work by


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

    `likely_actors`: how many actors to cut the work for. `waits`: the first GPU has yet to come. `stage_actors` work beside them, in a
    stage of their own, with so many CPUs and such a share of a GPU each.
    """

    use_gpu: bool
    num_actors: int | None
    likely_actors: int
    threads: int
    num_cpus: float
    waits: bool = False
    warning: str | None = None
    stage_actors: int = 0
    stage_cpus: float = 0.0
    stage_gpus: float = 0.0

    @property
    def num_gpus(self) -> float:
        return 1.0 - self.stage_gpus if self.use_gpu else 0.0


def place(where: Place, cluster: Cluster, *, compiled: bool = False, segmenter: Segmenter | None = None) -> Placement:
    """Decide from what a cluster offers where and how widely to work. `compiled`: the passes are, which takes a GPU.

    Raises: ConfigError for device=cuda where no GPU can come, `compiled` where none is used, or more actors than the cluster can
    ever host.
    """
    if segmenter is None:
        return _place(where, cluster, compiled=compiled)
    count = segmenter.actors
    share = min(1.0, int(max(cluster.cpus - 1, 0.5) / 2 / count * 100) / 100)  # half of what is free at most, one CPU each
    if share <= 0:
        raise ConfigError(f"segmenter.actors: got {count}, too many for {cluster.cpus:g} CPUs; allowed: fewer, or more CPUs")
    placement = _place(where, dataclasses.replace(cluster, cpus=cluster.cpus - count * share), compiled=compiled)
    on_gpu = segmenter.device == "cuda"
    if on_gpu and not placement.use_gpu:
        raise ConfigError("segmenter.device: got cuda where editing is on CPUs; allowed: cpu, or a cluster with GPUs")
    return dataclasses.replace(
        placement, stage_actors=count, stage_cpus=share, stage_gpus=segmenter.gpu_share if on_gpu else 0.0
    )


def _place(where: Place, cluster: Cluster, *, compiled: bool) -> Placement:
    if where.device == "cuda" or (where.device == "auto" and cluster.gpus >= 1):
        return _place_on_gpus(where, cluster)
    if compiled:
        raise ConfigError(NEEDS_GPU)
    warning = None
    if where.device == "auto" and cluster.most_gpus != 0:
        warning = "device=auto: the cluster has no GPU now, so the CPU edits; device=cuda waits until one has come"
    threads = actor_threads(where, int(min(cluster.node_cpus, os.cpu_count() or 1)))
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
        threads=actor_threads(where, os.cpu_count() or 1),
        num_cpus=1.0,
        waits=now < 1,
        warning=warning,
    )


def auto_batch_size(
    device_gib: float | None, multiple: int = 1, *, canvas_px: int = CANVAS_PX, weights_gib: float = WEIGHTS_GIB
) -> int:
    """Settle the batch size by the device's memory in GiB (None: CPU) that a model's weights leave, and by the size of its canvas, an edit's
    memory being in proportion to its pixels; raised to a multiple."""
    size = CPU_BATCH
    if device_gib is not None:
        left = max(0.0, device_gib - max(0.0, weights_gib - WEIGHTS_GIB))
        size = next(size for least, size in GPU_BATCHES if left >= least)
    size = max(1, int(size * min(1.0, (CANVAS_PX / canvas_px) ** 2)))
    return -(-size // multiple) * multiple


def actor_threads(where: Place, cores: int) -> int:
    """Settle the CPU threads of one actor, on a node of so many cores."""
    # Independent of the number of actors: the number of threads may change rounding, that of actors must not.
    return where.threads if isinstance(where.threads, int) else min(AUTO_THREADS, max(1, cores // 2))
