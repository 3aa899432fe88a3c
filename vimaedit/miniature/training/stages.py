"""Which stages there are, what each stands on, and what share of the time it gets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from vimaedit.miniature.family import new_clip
from vimaedit.miniature.training.adapter import AdapterStage, adapt
from vimaedit.miniature.training.components import Components, fit_components
from vimaedit.miniature.training.consistency import ConsistencyStage
from vimaedit.miniature.training.contrastive import ContrastiveStage
from vimaedit.miniature.training.data import render_batch, to_pixels, training_scene
from vimaedit.miniature.training.decoder import DecoderStage
from vimaedit.miniature.training.denoiser import Denoiser, DenoiserStage
from vimaedit.miniature.training.loop import ALONE, Budget, Replica, Stage, train

# Shares of the time of both lanes, each of which is 1: the decoder beside the CLIPs, two denoisers, the adapter beside the student.
SHARES = {
    "decoder": 0.10,
    "clip": 0.05,
    "scoring_clip": 0.05,
    "denoiser": 0.75,
    "ip_adapter": 0.15,
    "consistency": 0.15,
}
LEARNING_RATES = {
    "denoiser": 1e-3,
    "ip_adapter": 1e-3,
    "decoder": 2e-3,
    "clip": 1e-3,
    "scoring_clip": 1e-3,
    "consistency": 2e-4,
}
AVERAGES = {"clip": 0.99, "scoring_clip": 0.99, "consistency": 0.998, "ip_adapter": 0.998}
_FITTED_SCENES = 1500

Network = TypeVar("Network", bound=nn.Module)


def find_components(folder: Path) -> Components:
    """Return the components of the run in `folder`, found and kept there by the first call."""
    path = folder / "components.pt"
    if not path.is_file():
        scenes = [training_scene("components", n)[0] for n in range(_FITTED_SCENES)]
        building = path.with_suffix(f".{os.getpid()}")
        torch.save(vars(fit_components(to_pixels(render_batch(scenes)))), building)
        os.replace(building, path)
    return Components(**torch.load(path, weights_only=True))


def run_stage(name: str, folder: Path, *, minutes: float, seed: int, device: torch.device, replica: Replica = ALONE) -> None:
    """Train one stage to the end of its budget; the stages it stands on have finished in the same folder."""
    torch.manual_seed(seed)  # all replicas of a stage begin with the same weights
    stage = _new_stage(name, folder, device)
    budget = Budget(minutes=minutes, learning_rate=LEARNING_RATES[name], average=AVERAGES.get(name, 0.999))
    train(stage, budget, folder, seed=seed, replica=replica)


def load_averaged(name: str, folder: Path, network: Network) -> Network:
    """Load the averaged weights of a stage into a new network, and return it."""
    saved = torch.load(folder / f"{name}.pt", weights_only=True, map_location="cpu")
    network.load_state_dict(saved["averaged"])
    network.eval()
    return network


def load_denoiser(folder: Path) -> Denoiser:
    """Return the trained UNet and text encoder."""
    return load_averaged("denoiser", folder, Denoiser())


def load_adapted(folder: Path) -> UNet2DConditionModel:
    """Return the trained UNet with its IP-Adapter."""
    return load_averaged("ip_adapter", folder, adapt(Denoiser().unet))


def _new_stage(name: str, folder: Path, device: torch.device) -> Stage:
    if name in ("clip", "scoring_clip"):
        return ContrastiveStage(name, device)
    components = find_components(folder)
    if name == "decoder":
        return DecoderStage(components, device)
    if name == "denoiser":
        return DenoiserStage(components, device)
    if name == "ip_adapter":
        return AdapterStage(components, load_denoiser(folder), load_averaged("clip", folder, new_clip()), device)
    if name == "consistency":
        return ConsistencyStage(components, load_denoiser(folder), device)
    raise ValueError(f"stage: got {name!r}; allowed: {', '.join(SHARES)}")
