"""Training of the built-in model on one machine: its stages as Ray tasks, on two lanes of a CPU or one by one on a GPU."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from vimaedit.config import check_range, check_types
from vimaedit.errors import ConfigError

# In the order in which they are begun; what each stands on comes before it.
STAGES: dict[str, tuple[str, ...]] = {
    "components": (),
    "decoder": ("components",),
    "clip": (),
    "scoring_clip": (),
    "denoiser": ("components",),
    "ip_adapter": ("denoiser", "clip"),
    "consistency": ("denoiser",),
}
REPLICATED = "denoiser"  # the one that needs most of the time, by as many as there are lanes
CHECKPOINTS = "checkpoints"
NEWS_EVERY_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What `jobs.train_miniature` is told."""

    output: str = (
        ""  # local folder: gets miniature/, lcm_unet/, scoring_clip/ and checkpoints/, from which a second call goes on
    )
    minutes: float = 240.0  # of training in all; a larger number later goes on from where a smaller one ended
    seed: int = 0  # of weights, scenes and noise

    def __post_init__(self) -> None:
        check_types(self)
        check_range("minutes", self.minutes, 0.1, 100_000)
        check_range("seed", self.seed, 0, 2**31 - 1)
        if "://" in self.output:
            raise ConfigError(f"output: got {self.output!r}; allowed: a local folder, since checkpoints are gone on from")


def train_family(config: TrainConfig, on_started: Callable[[], None] | None = None) -> Path:
    """Train every stage and write what they make; return the folder of the bundle. `on_started` is called right after Ray has
    started (the place to install signal handlers)."""
    folder = Path(config.output)
    checkpoints = folder / CHECKPOINTS
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output: got {config.output!r}, which cannot be made ({error.strerror}); allowed: a local folder"
        ) from error
    cores = os.cpu_count() or 1
    lanes = min(2, cores)
    # Ray's tasks are the lanes; the threads of a lane are torch's.
    ray.init(address="local", num_cpus=lanes, include_dashboard=False, log_to_driver=False)
    if on_started is not None:
        on_started()
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    on_gpu = resources.get("GPU", 0) >= 1
    lane = ray.remote(max_retries=0, num_cpus=lanes if on_gpu else 1, num_gpus=1 if on_gpu else 0)
    num_lanes = 1 if on_gpu else lanes
    threads = cores if on_gpu else cores // lanes
    task = lane(_run_stage)
    running: dict[str, list[Any]] = {}
    for name, below in STAGES.items():
        done = [each for other in below for each in running[other]]
        count = num_lanes if name == REPLICATED else 1
        # Two lanes have twice the time of one.
        minutes = config.minutes * num_lanes / 2 * (2 / count if name == REPLICATED else 1)
        running[name] = [
            task.remote(name, checkpoints, config, minutes, threads, on_gpu, index, count, *done) for index in range(count)
        ]
    stages = [each for replicas in running.values() for each in replicas]
    written = lane(_write).remote(checkpoints, folder, threads, *stages)
    for line in _news(checkpoints, written):
        logger.info("%s", line)
    bundle: Path = ray.get(written)
    return bundle


def _run_stage(
    name: str,
    checkpoints: Path,
    config: TrainConfig,
    minutes: float,
    threads: int,
    on_gpu: bool,
    index: int,
    count: int,
    *below: None,
) -> None:
    import torch

    from vimaedit.miniature.training.loop import Replica
    from vimaedit.miniature.training.stages import SHARES, find_components, run_stage

    torch.set_num_threads(threads)
    if name == "components":
        find_components(checkpoints)
        return
    device = torch.device("cuda" if on_gpu else "cpu")
    replica = Replica(index=index, count=count)
    run_stage(name, checkpoints, minutes=minutes * SHARES[name], seed=config.seed, device=device, replica=replica)


def _write(checkpoints: Path, folder: Path, threads: int, *stages: None) -> Path:
    import torch

    from vimaedit.miniature.training.bundle import write_family
    from vimaedit.miniature.training.card import write_record

    torch.set_num_threads(threads)
    write_family(checkpoints, folder)
    write_record(checkpoints, folder / "training.md")
    return folder / "miniature"


def _news(checkpoints: Path, last: Any) -> Iterator[str]:
    """Yield each new line of the stages' curves until `last` is done or has failed."""
    seen = {path: len(path.read_text()) for path in checkpoints.glob("*.jsonl")}
    for _ in itertools.count():
        finished, _ = ray.wait([last], timeout=NEWS_EVERY_S)
        for path in sorted(checkpoints.glob("*.jsonl")):
            text = path.read_text()
            whole = text[: text.rfind("\n") + 1]
            for line in whole[seen.get(path, 0) :].splitlines():
                figures = ", ".join(f"{key} {value:g}" for key, value in json.loads(line).items())
                yield f"{path.stem}: {figures}"
            seen[path] = len(whole)
        if finished:
            return
