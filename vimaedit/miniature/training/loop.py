"""The one training loop: a budget in minutes, an average of the weights, checkpoints from which it goes on.

Several replicas may train one stage side by side, each on batches of its own. Now and then a replica leaves its weights in the
folder and moves to the mean of its own and the others' latest; none waits for another, so a slow one costs nothing.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

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
    """What is trained: the networks, the loss of a step, and figures by which to judge."""

    name: str
    trained: nn.Module

    def loss(self, step: int) -> Tensor:
        """Return the loss on the batch of a step; the batch follows from the step's number."""
        ...

    def evaluate(self, trained: nn.Module) -> dict[str, float]:
        """Return figures for the curve, of the averaged weights."""
        ...


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a stage trains and how fast it learns. `average`: the share of the mean that each step leaves, at most."""

    minutes: float
    learning_rate: float
    average: float = 0.999


@dataclass(frozen=True, kw_only=True)
class Replica:
    """Which of how many that train a stage together. The first one's averaged weights are the result."""

    index: int = 0
    count: int = 1

    def name(self, stage: str) -> str:
        """Name the replica's files."""
        return stage if self.index == 0 else f"{stage}-{self.index}"


ALONE = Replica()


def train(stage: Stage, budget: Budget, folder: Path, *, seed: int, replica: Replica = ALONE) -> nn.Module:
    """Train a stage for its budget and return the averaged weights; what an earlier call left in `folder` is gone on from.

    The learning rate is steady for a part of the budget and then falls evenly. Batches, and what is drawn within a step, follow
    from the seed and the step's number; the time a machine takes decides how many steps there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = replica.name(stage.name)
    path = folder / f"{name}.pt"
    network = stage.trained
    optimizer = torch.optim.AdamW(network.parameters(), lr=budget.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    averaged = copy.deepcopy(network).eval().requires_grad_(False)
    step, spent_s = 0, 0.0
    if path.is_file():
        saved = torch.load(path, weights_only=True, map_location=next(network.parameters()).device)
        network.load_state_dict(saved["network"])
        averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent_s = saved["step"], saved["spent_s"]
    losses: list[float] = []
    seen: dict[Path, float] = {}
    started = logged = saved_at = time.monotonic()
    while spent_s < 60 * budget.minutes:
        rate = _rate(step, spent_s / (60 * budget.minutes)) * budget.learning_rate
        for group in optimizer.param_groups:
            group["lr"] = rate
        number = step * replica.count + replica.index
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 2**32 + number)
            loss = stage.loss(number)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        if replica.count > 1 and step % MEET_EVERY_STEPS == 0:
            _meet(network, folder, stage.name, replica, seen)
        _average(averaged, network, min(budget.average, 1 - 1 / (1 + step / 10)))
        losses.append(loss.item())
        now = time.monotonic()
        spent_s, started = spent_s + now - started, now
        if now - logged > LOG_EVERY_S:
            steps_per_s = len(losses) / (now - logged)
            figures = {"minutes": spent_s / 60, "step": step, "steps_per_s": steps_per_s, "loss": sum(losses) / len(losses)}
            _note(folder / f"{name}.jsonl", figures | _evaluate(stage, averaged))
            losses, logged, started = [], time.monotonic(), time.monotonic()
        if now - saved_at > SAVE_EVERY_S:
            _save(path, network, averaged, optimizer, step, spent_s)
            saved_at = started = time.monotonic()
    if losses:
        _note(folder / f"{name}.jsonl", {"minutes": spent_s / 60, "step": step} | _evaluate(stage, averaged))
        _save(path, network, averaged, optimizer, step, spent_s)
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
    for own, new in zip(averaged.parameters(), network.parameters(), strict=True):
        own.lerp_(new, 1 - kept)


@torch.inference_mode()
def _evaluate(stage: Stage, averaged: nn.Module) -> dict[str, float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return stage.evaluate(averaged)


def _note(path: Path, figures: dict[str, Any]) -> None:
    line = json.dumps({key: round(value, 4) for key, value in figures.items()})
    logger.info("%s %s", path.stem, line)
    with path.open("a") as curve:
        curve.write(line + "\n")


def _save(path: Path, network: nn.Module, averaged: nn.Module, optimizer: Any, step: int, spent_s: float) -> None:
    building = path.with_suffix(".tmp")
    content = {
        "network": network.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "spent_s": spent_s,
    }
    torch.save(content, building)
    os.replace(building, path)
