"""From the stages' checkpoints to the files that are shipped: bundle, scoring CLIP, and how they were trained."""

from __future__ import annotations

import json
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
    load_weights,
)
from vimaedit.miniature.training.components import set_encoder
from vimaedit.miniature.training.options import STAGES
from vimaedit.miniature.vocabulary import write_json, write_tokenizer

Network = TypeVar("Network", bound=PreTrainedModel)
_FACTS = {"canvas_size": CANVAS_SIZE, "grounding_sides": GROUNDING_SIDES}
# Chosen on the validation split: guidance, windows, and how much of the noisy end is left out. What a method does not state comes
# from the recipe itself, unless it is published with something else.
_GUIDED = {"target_guidance": 1.2}
_CLOSED = {"self": 0.0, "text": 0.0}
_GUIDED_CLOSED = {**_GUIDED, "windows": _CLOSED}
_BOTH_GUIDED = {**_GUIDED_CLOSED, "source_guidance": 1.2}
_SELF_ALONE = {**_GUIDED, "windows": {"self": 0.6, "text": 0.0}}
_NOT_SKIPPED = {**_GUIDED, "skip": 0.0}
RECIPE: dict[str, Any] = {
    **_GUIDED,
    "skip": 0.36,
    "image_strength": 0.2,
    "grounding_rounds": 1,
    "thresholds": {"edit": 0.25, "critical": 0.8},
    "windows": {**_CLOSED, "image": 0.0},
    "methods": {
        "p2p": _GUIDED_CLOSED,
        "ddim-p2p": _BOTH_GUIDED,
        "npi-p2p": _GUIDED_CLOSED,
        "proximal-p2p": _GUIDED_CLOSED,
        "null-text-p2p": _BOTH_GUIDED,
        "virtual-p2p": _SELF_ALONE,
        "masactrl": _GUIDED,
        "ddim-masactrl": _GUIDED,
        "pnp": _NOT_SKIPPED,
        "ddim-pnp": _NOT_SKIPPED,
        "p2p-zero": _GUIDED,
        "ddim-p2p-zero": _GUIDED,
        "edit-friendly": {**_GUIDED, "source_guidance": 1.0},
        "edit-friendly-p2p": {**_GUIDED_CLOSED, "skip": 0.36},
        "infedit": _SELF_ALONE,
        "locatedit": _SELF_ALONE,
        "leditspp": {"target_guidance": 2.0},
    },
}
_POINTS = 8  # of a curve
# Of a curve's line; the rest are figures of the averaged weights.
_BESIDE = ("minutes", "step", "samples", "learning_rate", "steps_per_s", "loss")


def write_family(checkpoints: Path, folder: Path) -> None:
    """Write all that was trained in half precision: `miniature/` (the bundle) and `scoring_clip/`."""
    _write_bundle(checkpoints, folder / "miniature")
    _write_clip(_halved(load_clip(checkpoints, "scoring_clip")), folder / "scoring_clip")


def write_record(checkpoints: Path, path: Path) -> None:
    """Write what the stages' curves tell as Markdown."""
    curves = {name: _read(checkpoints / f"{name}.jsonl") for name in STAGES if (checkpoints / f"{name}.jsonl").is_file()}
    lines = [
        "# How these weights were trained",
        "",
        "Minutes are those of the stage; on a CPU stages run side by side.",
        "",
        "| stage | minutes | steps | samples | learning rate |",
        "|---|---|---|---|---|",
    ]
    for name, curve in curves.items():
        replicas = [curve, *(_read(each) for each in sorted(checkpoints.glob(f"{name}-*.jsonl")))]
        steps = " + ".join(str(each[-1]["step"]) for each in replicas)
        samples = sum(each[-1]["samples"] for each in replicas)
        lines.append(f"| {name} | {curve[-1]['minutes']:.1f} | {steps} | {samples} | {curve[-1]['learning_rate']:g} |")
    for name, curve in curves.items():
        figures = [key for key in curve[-1] if key not in _BESIDE]
        lines += ["", f"## {name}", "", f"| minutes | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
        for point in _spread(curve):
            lines.append(f"| {point['minutes']:.1f} | {' | '.join(f'{point[key]:g}' for key in figures)} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


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


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _spread(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pick points of a curve at even distances, its last among them."""
    count = min(_POINTS, len(curve))
    return [curve[(n + 1) * len(curve) // count - 1] for n in range(count)]
