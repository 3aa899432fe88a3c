"""Load a model's networks with diffusers and transformers, in their own formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError

from vimaedit.config import ModelConfig
from vimaedit.errors import ConfigError
from vimaedit.models.backbone import Networks
from vimaedit.models.family import pipeline_class
from vimaedit.models.files import ModelFiles

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

Pipeline = Any  # the family's class of diffusers
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the original CLIP, where a folder states no other
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def load_networks(files: ModelFiles, model: ModelConfig) -> Networks:
    """Load UNet, VAE and text encoder in the model's dtype, CLIP in float32, LoRAs merged, IP-Adapter in place.

    Raises: ConfigError for a device that is not there, a model of another kind, or parts that do not fit together.
    """
    with quiet_libraries():
        return _load(files, model)


def _load(files: ModelFiles, model: ModelConfig) -> Networks:
    from transformers import CLIPTokenizer

    device = choose_device(model.device)
    pipe = _load_pipeline(files, choose_dtype(model.dtype, device))
    scheduler = pipe.scheduler.config
    predicts = scheduler.get("prediction_type", "epsilon")
    if predicts not in files.family.predictions:
        allowed = " or ".join(files.family.predictions)
        raise ConfigError(f"model: got one that predicts {predicts}; allowed: models that predict {allowed}")
    _fit_tokenizer("model", pipe.tokenizer, pipe.text_encoder.config)
    _merge_loras(pipe, files)
    clip = clip_tokenizer = None
    if files.ip_adapter is not None and files.clip is not None:
        clip = _load_clip(files)
        clip_tokenizer = CLIPTokenizer.from_pretrained(files.clip)
        _fit_tokenizer("clip", clip_tokenizer, clip.config.text_config)
        _load_ip_adapter(pipe, files, clip)
    for network in (*(getattr(pipe, name) for name in files.family.networks), clip):
        if network is not None:
            network.to(device).eval().requires_grad_(False)
    mean, std = _clip_normalisation(files)
    sides = files.bundle.get("grounding_sides", {})
    return Networks(
        unet=pipe.unet,
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        clip=clip,
        clip_tokenizer=clip_tokenizer,
        clip_mean=mean,
        clip_std=std,
        alphas_cumprod=_alphas_cumprod(pipe),
        predicts_velocity=predicts == "v_prediction",
        window_side=files.family.window_side,
        self_side=sides.get("self", files.family.self_side),
        cross_side=sides.get("cross", files.family.cross_side),
    )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep loading bars and advice meant for pipeline users out of the log; what goes wrong is raised, not logged."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def choose_device(name: str) -> torch.device:
    """Resolve `auto`, and check that the device is there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device: got {name}, but this process sees {count} CUDA devices; allowed: cpu, or auto")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve `auto`: float32 on the CPU, float16 on CUDA."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _load_pipeline(files: ModelFiles, dtype: torch.dtype) -> Pipeline:

    pipeline = pipeline_class(files.family)
    options: dict[str, Any] = {
        "dtype": dtype,
        "safety_checker": None,
        "requires_safety_checker": False,
        "local_files_only": True,
    }
    try:
        if files.checkpoint is not None:
            return pipeline.from_single_file(str(files.checkpoint), config=str(files.diffusers), **options)
        return pipeline.from_pretrained(files.diffusers, variant=files.variant, image_encoder=None, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"model: got {files.name!r}, which does not load: {str(error).strip()}") from error


def _merge_loras(pipe: Pipeline, files: ModelFiles) -> None:
    for path, scale in files.loras:
        try:
            pipe.load_lora_weights(str(path.parent), weight_name=path.name)
            pipe.fuse_lora(lora_scale=scale)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ConfigError(f"lora: got {str(path)!r}, which does not load onto this model: {str(error).strip()}") from error
        pipe.unload_lora_weights()


def _fit_tokenizer(option: str, tokenizer: CLIPTokenizer, text_config: Any) -> None:
    """Give the tokenizer the length of its encoder, and refuse one that is not the encoder's (a missing vocabulary file)."""
    if not text_config.vocab_size / 2 <= len(tokenizer) <= text_config.vocab_size:
        raise ConfigError(
            f"{option}: got a tokenizer of {len(tokenizer)} entries for a text encoder of {text_config.vocab_size}; allowed: the "
            "tokenizer that belongs to it (vocab.json and merges.txt, or tokenizer.json)"
        )
    tokenizer.model_max_length = text_config.max_position_embeddings


def _load_clip(files: ModelFiles) -> CLIPModel:
    from transformers import CLIPModel

    try:
        return CLIPModel.from_pretrained(files.clip, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"clip: got {str(files.clip)!r}, which does not load: {str(error).strip()}") from error


def _load_ip_adapter(pipe: Pipeline, files: ModelFiles, clip: CLIPModel) -> None:
    assert files.ip_adapter is not None
    path = files.ip_adapter
    try:
        # No image encoder of its own: it is the vision tower of the CLIP that is loaded beside it.
        pipe.load_ip_adapter(str(path.parent), subfolder="", weight_name=path.name, image_encoder_folder=None)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"ip_adapter: got {str(path)!r}, which does not load onto this model: {str(error).strip()}"
        ) from error
    projection = pipe.unet.encoder_hid_proj.image_projection_layers[0]
    width = getattr(getattr(projection, "image_embeds", None), "in_features", None)
    if width != clip.config.projection_dim:
        raise ConfigError(
            f"ip_adapter: got {str(path)!r}, which takes embeddings of {width} numbers, while clip gives {clip.config.projection_dim}; "
            "allowed: an IP-Adapter of the plain kind with the CLIP it was trained on"
        )


def _clip_normalisation(files: ModelFiles) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    path = files.clip / "preprocessor_config.json" if files.clip is not None else None
    stated = json.loads(path.read_text()) if path is not None and path.is_file() else {}
    return tuple(stated.get("image_mean", CLIP_MEAN)), tuple(stated.get("image_std", CLIP_STD))


def _alphas_cumprod(pipe: Pipeline) -> np.ndarray:
    """Return the cumulative alphas of the training levels; the grid is ours, the pipeline's own scheduler is not used."""
    from diffusers import DDIMScheduler

    kept = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
    scheduler = DDIMScheduler(**{key: pipe.scheduler.config[key] for key in kept if key in pipe.scheduler.config})
    alphas: np.ndarray = scheduler.alphas_cumprod.double().numpy()
    return alphas
