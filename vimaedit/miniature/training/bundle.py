"""From the stages' checkpoints to the files that are shipped: the bundle, the distilled UNet, the scoring CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import CLIPModel, PreTrainedModel

from vimaedit.miniature.bundle_files import write_adapter, write_model_index, write_preprocessor, write_transformer
from vimaedit.miniature.family import (
    CANVAS_SIZE,
    CLIP_MEAN,
    CLIP_SIDE,
    CLIP_STD,
    GROUNDING_SIDES,
    MAX_TOKENS,
    new_autoencoder,
    new_scheduler,
)
from vimaedit.miniature.training.checkpoints import (
    load_clip,
    load_components,
    load_decoder,
    load_denoiser,
    load_unet,
    load_weights,
)
from vimaedit.miniature.training.components import set_encoder
from vimaedit.miniature.vocabulary import write_json, write_tokenizer

Network = TypeVar("Network", bound=PreTrainedModel)
_FACTS = {"canvas_size": CANVAS_SIZE, "grounding_sides": GROUNDING_SIDES}
# Chosen on the validation split.
RECIPE: dict[str, Any] = {
    "target_guidance": 2.0,
    "image_strength": 0.2,
    "grounding_rounds": 1,
    "thresholds": {"edit": 0.4, "critical": 0.8},
    "windows": {"self": 0.6, "text": 0.6, "image": 0.0},
}
# The student has its teacher's guidance built in.
FEW_STEP_RECIPE: dict[str, Any] = {**RECIPE, "steps": 8, "target_guidance": 1.0}


def write_family(checkpoints: Path, folder: Path) -> None:
    """Write all that was trained in half precision: `miniature/` (the bundle), `lcm_unet/` and `scoring_clip/`."""
    _write_bundle(checkpoints, folder / "miniature")
    load_unet(checkpoints, "consistency").half().save_pretrained(folder / "lcm_unet")
    write_json(folder / "lcm_unet" / "bundle.json", {"name": "miniature-lcm", **_FACTS, "recipe": FEW_STEP_RECIPE})
    _write_clip(_halved(load_clip(checkpoints, "scoring_clip")), folder / "scoring_clip")


def _write_bundle(checkpoints: Path, folder: Path) -> None:
    denoiser = load_denoiser(checkpoints)
    autoencoder = new_autoencoder()
    set_encoder(autoencoder, load_components(checkpoints))
    autoencoder.decoder = load_decoder(checkpoints)
    clip = _halved(load_clip(checkpoints, "clip"))

    sd = folder / "sd"
    denoiser.unet.half().save_pretrained(sd / "unet")
    autoencoder.half().save_pretrained(sd / "vae")
    write_transformer(_halved(denoiser.text_encoder), sd / "text_encoder")
    new_scheduler().save_pretrained(sd / "scheduler")
    write_tokenizer(sd / "tokenizer", length=MAX_TOKENS)
    write_preprocessor(sd / "feature_extractor", side=CLIP_SIDE, mean=CLIP_MEAN, std=CLIP_STD)
    write_model_index(sd)
    _write_clip(clip, folder / "clip")
    adapter = {name: value.half() for name, value in load_weights(checkpoints, "ip_adapter").items()}
    write_adapter(folder / "ip_adapter" / "models", adapter, clip)
    write_json(folder / "bundle.json", {"name": "miniature", **_FACTS, "recipe": RECIPE})


def _write_clip(clip: CLIPModel, folder: Path) -> None:
    write_transformer(clip, folder)
    write_tokenizer(folder, length=MAX_TOKENS)
    write_preprocessor(folder, side=CLIP_SIDE, mean=CLIP_MEAN, std=CLIP_STD)


def _halved(network: Network) -> Network:
    """Keep the numbers of a transformers network in half precision, to be loaded in single where nothing else is asked for."""
    network.half()
    network.config.dtype = torch.float32
    return network
