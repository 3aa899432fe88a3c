"""The one training loop: a budget in minutes, an average of the weights, checkpoints from which it goes on.

Several replicas may train one stage side by side, each on batches of its own. Now and then a replica leaves its weights in the
folder and moves to the mean of its own and the others' latest; none waits for another, so a slow one costs nothing. What one left
goes on with two and the other way round, on a CPU or a GPU.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vimaedit.miniature.training.checkpoints import save_weights
from vimaedit.miniature.training.data import Draw, draw_ahead, reuse

LOG_EVERY_S = 60.0
SAVE_EVERY_S = 120.0
WARM_UP_STEPS = 200
# Of the budget with the full learning rate; then it falls. A longer budget can go on from a shorter one, but what shapes the words
# mean is learned while the rate falls: a wrong shape word raised the UNet's error by 6 % before (30,000 steps) and by 32 % after.
STEADY_PART = 0.4
FINAL_RATE = 0.02  # of the learning rate

MEET_EVERY_STEPS = 50

logger = logging.getLogger(__name__)


class Stage(Protocol):
    """What is trained: the networks, what a batch shows, the loss on it, and figures by which to judge.

    `batch`: scenes in one.
    """

    name: str
    trained: nn.Module
    batch: int

    @property
    def draw(self) -> Draw:
        """Return what draws batches, in this process or another."""
        ...

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the loss on what `draw` returned."""
        ...

    def evaluate(self, trained: nn.Module) -> dict[str, float]:
        """Return figures for the curve, of the averaged weights."""
        ...

    def weights(self, trained: nn.Module) -> Mapping[str, Tensor]:
        """Return what is kept of the averaged network, by the names of its file."""
        ...


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a stage trains and how fast it learns.

    `average`: the share of the mean that each step leaves, at most. `workers`: processes that draw ahead. `uses`: how often a batch
    is seen. `half`: gradients are scaled, as arithmetic in float16 needs it.
    """

    minutes: float
    learning_rate: float
    average: float = 0.999
    workers: int = 0
    uses: int = 1
    half: bool = False


@dataclass(frozen=True, kw_only=True)
class Replica:
    """Which of how many that train a stage together. The first one's averaged weights are the result."""

    index: int = 0
    count: int = 1

    def name(self, stage: str) -> str:
        """Name the replica's files."""
        return stage if self.index == 0 else f"{stage}-{self.index}"


ALONE = Replica()


@dataclass
class _Progress:
    """How far a replica is. `scenes`: the number from which on none has been drawn; `samples`: how many it has seen itself."""

    step: int = 0
    spent_s: float = 0.0
    scenes: int = 0
    samples: int = 0


def train(stage: Stage, budget: Budget, folder: Path, *, seed: int, replica: Replica = ALONE) -> nn.Module:
    """Train a stage for its budget and return the averaged weights; what an earlier call left in `folder` is gone on from.

    The learning rate is steady for a part of the budget and then falls evenly. Batches, and what is drawn within a step, follow
    from the seed and the numbers of scenes and step; the time a machine takes decides how many steps there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = replica.name(stage.name)
    path = folder / f"{name}.pt"
    network = stage.trained
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), lr=budget.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    averaged = copy.deepcopy(network).eval().requires_grad_(False)
    # A replica that has joined goes on from what the first one left.
    left = next((each for each in (path, folder / f"{stage.name}.pt") if each.is_file()), None)
    progress = _Progress() if left is None else _load(left, network, averaged, optimizer)
    stride = stage.batch * replica.count
    first = -(-progress.scenes // stride) * stride + stage.batch * replica.index
    batches = reuse(draw_ahead(stage.draw, first, stride, budget.workers), budget.uses)
    scaler = torch.amp.GradScaler(device.type, enabled=budget.half)
    losses: list[Tensor] = []
    saved_step = progress.step
    seen: dict[Path, float] = {}
    started = logged = saved_at = time.monotonic()
    while progress.spent_s < 60 * budget.minutes:
        number, arrays = next(batches)
        rate = _rate(progress.step, progress.spent_s / (60 * budget.minutes)) * budget.learning_rate
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 2**32 + progress.step * replica.count + replica.index)
            loss = stage.loss(*(torch.from_numpy(each).to(device) for each in arrays))
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        progress.step += 1
        progress.samples += stage.batch
        progress.scenes = max(progress.scenes, number + stage.batch)
        if replica.count > 1 and progress.step % MEET_EVERY_STEPS == 0:
            _meet(network, folder, stage.name, replica, seen)
        _average(averaged, network, min(budget.average, 1 - 1 / (1 + progress.step / 10)))
        losses.append(loss.detach())  # read when there is a line to write: each reading waits for the device
        now = time.monotonic()
        progress.spent_s, started = progress.spent_s + now - started, now
        if now - logged > LOG_EVERY_S:
            figures = {"steps_per_s": len(losses) / (now - logged), "loss": torch.stack(losses).mean().item()}
            _note(folder / f"{name}.jsonl", budget, progress, figures | _evaluate(stage, averaged))
            losses, logged, started = [], time.monotonic(), time.monotonic()
        if now - saved_at > SAVE_EVERY_S:
            _save(path, stage, network, averaged, optimizer, progress)
            saved_at, saved_step = time.monotonic(), progress.step
            started = saved_at
    if losses:
        _note(folder / f"{name}.jsonl", budget, progress, _evaluate(stage, averaged))
    if progress.step > saved_step:
        _save(path, stage, network, averaged, optimizer, progress)
    return averaged


def _meet(network: nn.Module, folder: Path, stage: str, replica: Replica, seen: dict[Path, float]) -> None:
    """Leave the own weights for the others, and take the mean with those that they left since the last time."""
    own = folder / f"{replica.name(stage)}.weights"
    building = own.with_suffix(f".{os.getpid()}")
    torch.save(network.state_dict(), building)
    os.replace(building, own)
    met = [network.state_dict()]
    for index in range(replica.count):
        path = folder / f"{Replica(index=index, count=replica.count).name(stage)}.weights"
        if index != replica.index and path.is_file() and path.stat().st_mtime != seen.get(path):
            seen[path] = path.stat().st_mtime
            met.append(torch.load(path, weights_only=True, map_location=next(network.parameters()).device))
    if len(met) > 1:
        network.load_state_dict({key: torch.stack([each[key] for each in met]).mean(dim=0) for key in met[0]})


def _rate(step: int, fraction: float) -> float:
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return warm * min(1.0, max(FINAL_RATE, (1 - fraction) / (1 - STEADY_PART)))


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, kept: float) -> None:
    torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), 1 - kept)


@torch.inference_mode()
def _evaluate(stage: Stage, averaged: nn.Module) -> dict[str, float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return stage.evaluate(averaged)


def _note(path: Path, budget: Budget, progress: _Progress, figures: Mapping[str, float]) -> None:
    done = {"minutes": progress.spent_s / 60, "step": progress.step, "samples": progress.samples}
    line = {key: round(value, 4) for key, value in {**done, **figures}.items()}
    text = json.dumps({**line, "learning_rate": budget.learning_rate})
    logger.info("%s: %s", path.stem, ", ".join(f"{key} {value:g}" for key, value in line.items()))
    with path.open("a") as curve:
        curve.write(text + "\n")


def _load(path: Path, network: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer) -> _Progress:
    """Take up what `_save` left."""
    saved = torch.load(path, weights_only=True, map_location=next(network.parameters()).device)
    network.load_state_dict(saved["network"])
    averaged.load_state_dict(saved["averaged"])
    optimizer.load_state_dict(saved["optimizer"])
    return _Progress(**saved["progress"])


def _save(path: Path, stage: Stage, network: nn.Module, averaged: nn.Module, optimizer: Any, progress: _Progress) -> None:
    building = path.with_suffix(".tmp")
    content = {
        "network": network.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": vars(progress),
    }
    torch.save(content, building)
    os.replace(building, path)
    if path.stem == stage.name:
        save_weights(path.parent, stage.name, stage.weights(averaged))
