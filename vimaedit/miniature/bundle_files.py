"""The files of a bundle beside its weights' numbers: what the built-in models have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimaedit.miniature.vocabulary import write_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPModel, PreTrainedModel

ADAPTER_FILE = "ip-adapter_sd15.safetensors"


INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_model_index(folder: Path, own: Mapping[str, Any] | None = None) -> None:
    """Write what makes a folder a pipeline: which class each of its parts has; `own` are those of another than Stable Diffusion's."""
    write_json(folder / "model_index.json", {**INDEX, **(own or {})})


def write_preprocessor(folder: Path, *, side: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Write how CLIP's pictures are made: `side` in px, mean and deviation of each channel in 0..1."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    write_json(folder / "preprocessor_config.json", content)


def write_adapter(folder: Path, weights: Mapping[str, Tensor], clip: CLIPModel, name: str = ADAPTER_FILE) -> None:
    """Write an IP-Adapter's file, and CLIP's vision tower once more as the image encoder that stock loading expects beside it."""
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPVisionModelWithProjection

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), folder / name, metadata={"format": "pt"})
    with torch.random.fork_rng(devices=[]):
        image_encoder = CLIPVisionModelWithProjection(clip.config.vision_config)
    own = clip.state_dict()
    image_encoder.to(clip.dtype).load_state_dict({name: own[name] for name in image_encoder.state_dict()})
    image_encoder.config.dtype = clip.config.dtype
    write_transformer(image_encoder, folder / "image_encoder")


def write_transformer(network: PreTrainedModel, folder: Path) -> None:
    """Write a transformers network as `from_pretrained` reads it; its own way of saving draws a progress bar."""
    from safetensors.torch import save_file

    network.config.save_pretrained(folder)
    first = {tensor.data_ptr(): name for name, tensor in reversed(network.state_dict().items())}
    own = {name: tensor for name, tensor in network.state_dict().items() if first[tensor.data_ptr()] == name}  # tied ones once
    save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
