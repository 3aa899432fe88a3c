"""The stages: what each stands on, what share of the time it gets, and which run side by side."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType

import torch

from vimaedit.errors import ConfigError
from vimaedit.miniature.family import UNET_CHANNELS, new_autoencoder, new_clip
from vimaedit.miniature.training import adapter, contrastive, decoder, denoiser
from vimaedit.miniature.training.adapter import AdapterStage, adapt
from vimaedit.miniature.training.bundle import write_family, write_record
from vimaedit.miniature.training.checkpoints import (
    begin,
    find_weights,
    load_clip,
    load_components,
    load_decoder,
    load_denoiser,
    load_weights,
    weights_path,
)
from vimaedit.miniature.training.contrastive import ContrastiveStage, TwinDraw
from vimaedit.miniature.training.corrections import PairDraw
from vimaedit.miniature.training.decoder import DecoderStage, PictureDraw
from vimaedit.miniature.training.denoiser import Denoiser, DenoiserStage, choose_precision, use_plain_attention
from vimaedit.miniature.training.loop import Budget, Replica, Stage, train
from vimaedit.miniature.training.options import BUNDLE, WHOLE, TrainConfig
from vimaedit.models.networks import choose_device

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Of the time of both lanes, each of which is 1: the decoder beside the CLIPs, two denoisers, then the adapter alone.
ROUNDS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("decoder",), ("clip", "scoring_clip")),
    (("denoiser",), ("denoiser",)),
    (("ip_adapter",),),
)
SHARES = {"decoder": 0.10, "clip": 0.05, "scoring_clip": 0.05, "denoiser": 0.75, "ip_adapter": 0.15}
LEARNING_RATES = {
    "denoiser": 1e-3,
    "ip_adapter": 1e-3,
    "decoder": 2e-3,
    "clip": 1e-3,
    "scoring_clip": 1e-3,
}
STANDS_ON = {"ip_adapter": ("denoiser", "clip")}
AVERAGES = {"clip": 0.99, "scoring_clip": 0.99, "ip_adapter": 0.998}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One stage, or one replica's part of it, for so many minutes."""

    stage: str
    minutes: float
    replica: Replica


def train_family(config: TrainConfig) -> str:
    """Train what is asked for, going on from what the output holds, and return a line that says what was written."""
    folder = Path(config.output)
    checkpoints = folder / "checkpoints"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output: got {config.output!r}, which cannot be made ({error.strerror}); allowed: a local folder"
        ) from error
    device = choose_device(config.device)
    if config.dtype == "float16" and device.type == "cpu":
        raise ConfigError("dtype: got float16 on a CPU; allowed: float32, bfloat16")
    cores = os.cpu_count() or 1
    replicas = config.replicas or (min(2, cores) if device.type == "cpu" else 1)
    begin(checkpoints, config.start)
    for name in STANDS_ON.get(config.stage, ()):
        find_weights(checkpoints, name)
    for lanes in plan(config.stage, config.minutes, replicas):
        _run_lanes(config, checkpoints, device, lanes)
    write_record(checkpoints, folder / "training.md")
    if config.stage not in (WHOLE, BUNDLE):
        return f"weights: {find_weights(checkpoints, config.stage)}"
    write_family(checkpoints, folder)
    return f"bundle: {folder / 'miniature'}"


def plan(stage: str, minutes: float, replicas: int) -> list[list[list[Task]]]:
    """Return the rounds, one after the other, of lanes side by side, of tasks one after the other."""

    def task(name: str, share: float, index: int = 0, count: int = 1) -> Task:
        return Task(stage=name, minutes=minutes * share, replica=Replica(index=index, count=count))

    if stage in SHARES:
        return [[[task(stage, 1.0, index, replicas)] for index in range(replicas)]]
    if stage != WHOLE:
        return []
    if replicas == 1:  # what stands side by side shares the time
        return [
            [[task(name, SHARES[name] / len({*lanes})) for lanes in ROUNDS for lane in dict.fromkeys(lanes) for name in lane]]
        ]
    return [
        [
            [task(name, SHARES[name], index, 2) if len({*lanes}) < len(lanes) else task(name, SHARES[name]) for name in lane]
            for index, lane in enumerate(lanes)
        ]
        for lanes in ROUNDS
    ]


def _run_lanes(config: TrainConfig, checkpoints: Path, device: torch.device, lanes: Sequence[Sequence[Task]]) -> None:
    """Run lanes side by side, each in a process of its own where there are several; none outlives a failed one."""
    threads = config.threads or max(1, (os.cpu_count() or 1) // len(lanes))
    if len(lanes) == 1:
        _run_lane(config, checkpoints, device, threads, lanes[0])
        return
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=_run_child, args=(config, checkpoints, device, threads, lane)) for lane in lanes]
    for each in running:
        each.start()
    while running:
        wait([each.sentinel for each in running])
        ended = [each for each in running if each.exitcode is not None]
        running = [each for each in running if each.exitcode is None]
        if any(each.exitcode for each in ended):
            for each in running:
                each.terminate()
            raise RuntimeError(f"a process that trained ended with exit code {max(abs(each.exitcode or 0) for each in ended)}")


def _run_child(config: TrainConfig, checkpoints: Path, device: torch.device, threads: int, lane: Sequence[Task]) -> None:
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends, and this with it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _run_lane(config, checkpoints, device, threads, lane)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_lane(config: TrainConfig, checkpoints: Path, device: torch.device, threads: int, lane: Sequence[Task]) -> None:
    torch.set_num_threads(threads)
    workers = config.workers or (max(1, (os.cpu_count() or 1) - 1) if device.type == "cuda" else 0)
    dtype = choose_precision(config.dtype, device)
    for task in lane:
        torch.manual_seed(config.seed)  # all replicas of a stage begin with the same weights
        stage = new_stage(task.stage, checkpoints, config, device, dtype)
        budget = Budget(
            minutes=task.minutes,
            learning_rate=config.learning_rate or LEARNING_RATES[task.stage],
            average=AVERAGES.get(task.stage, 0.999),
            workers=workers,
            uses=config.uses,
            half=dtype == torch.float16,
        )
        train(stage, budget, checkpoints, seed=config.seed, replica=task.replica)


def new_stage(name: str, checkpoints: Path, config: TrainConfig, device: torch.device, dtype: torch.dtype) -> Stage:
    """Build a stage from its own weights in the folder, else from drawn ones, and those of the stages it stands on."""
    has_weights = weights_path(checkpoints, name).is_file()
    if name in ("clip", "scoring_clip"):
        clip = load_clip(checkpoints, name) if has_weights else new_clip()
        return ContrastiveStage(clip, TwinDraw(name, config.batch or contrastive.BATCH), device, dtype)
    components = load_components(checkpoints)
    if name == "decoder":
        network = load_decoder(checkpoints) if has_weights else new_autoencoder().decoder
        return DecoderStage(network, components, PictureDraw(config.batch or decoder.BATCH), device, dtype)

    def pairs(module: ModuleType, views: bool = False) -> PairDraw:
        corrections = module.CORRECTIONS if config.corrections is None else config.corrections
        return PairDraw(name, components, config.batch or module.BATCH, corrections, views)

    if name == "denoiser":
        trained = load_denoiser(checkpoints) if has_weights else Denoiser(config.channels or UNET_CHANNELS)
        if config.channels and list(trained.unet.config.block_out_channels) != config.channels:
            widths = list(trained.unet.config.block_out_channels)
            raise ConfigError(f"channels: got {config.channels}; allowed: {widths}, as the weights have")
        return DenoiserStage(trained, pairs(denoiser), device, dtype)
    below = load_denoiser(checkpoints)
    use_plain_attention(below.unet, device)
    unet = adapt(below.unet, load_weights(checkpoints, name) if has_weights else None)
    return AdapterStage(unet, below.text_encoder, load_clip(checkpoints, "clip"), pairs(adapter, views=True), device, dtype)
