"""Load a model's networks with diffusers and transformers, in their own formats; nothing that these would only log goes unnoticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
import torch

from vimaedit.config import ModelConfig
from vimaedit.errors import ConfigError, WrongWeights
from vimaedit.models.adapters import load_ip_adapter, merge_lora
from vimaedit.models.backbone import Networks
from vimaedit.models.checkpoint import load_checkpoint
from vimaedit.models.conditioning import Conditioning
from vimaedit.models.family import pipeline_class, reduction, without_extras
from vimaedit.models.files import ModelFiles, network_weights
from vimaedit.models.image_prompt import has_both_towers
from vimaedit.models.losses import all_tensors, check_finite, check_whole, left_out
from vimaedit.models.stated import (
    factor,
    factors,
    field,
    library_and_class,
    loading,
    numbers,
    read_json,
    text,
    token,
    truth,
    whole,
)
from vimaedit.types import LeftOut

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

Pipeline = Any  # the family's class of diffusers
MAX_LEVELS = 100_000  # of noise; models are trained on a thousand
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "tokenizer.json")
SPECIAL_TOKENS = ("bos", "eos", "unk", "pad")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the original CLIP, where a folder states no other
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def load_networks(files: ModelFiles, model: ModelConfig) -> Networks:
    """Load denoiser, VAE and text encoders in the model's dtype, CLIP in float32, LoRAs merged, IP-Adapter in place; and try them once.

    Raises: ConfigError for a device that is not there, a model of another kind, parts that do not fit together, and weights that are
    not whole or not finite.
    """
    with quiet_libraries():
        return _load(files, model)


def _load(files: ModelFiles, model: ModelConfig) -> Networks:
    device = choose_device(model.device)
    scheduler = files.diffusers / "scheduler" / "scheduler_config.json"
    predicts = _predicted(files, scheduler)
    if predicts not in files.family.predictions:
        allowed = " or ".join(files.family.predictions)
        raise ConfigError(
            f"model: got one that predicts {predicts}; allowed: models that predict {allowed}, by their {scheduler.name}"
        )
    alphas = _alphas_cumprod(files, scheduler) if files.family.grid is None else np.empty(0)
    family, dtype = files.family, choose_dtype(model.dtype, device, files.family.half)
    pipe, lost = load_pipeline(files, dtype)
    tokenizers = {encoder.network: getattr(pipe, encoder.tokenizer) for encoder in family.text_encoders}
    text_encoders = {encoder.network: getattr(pipe, encoder.network) for encoder in family.text_encoders}
    for encoder in family.text_encoders:
        _fit_tokenizer("model", tokenizers[encoder.network], text_encoders[encoder.network].config, encoder.length)
    merged = [merge_lora(pipe, files, path, scale) for path, scale in files.loras]
    clip = clip_tokenizer = None
    if files.ip_adapter is not None and files.clip is not None:
        clip, clip_lost = load_clip("clip", str(files.clip), files.clip)
        if has_both_towers(files.clip):
            clip_tokenizer = load_clip_tokenizer("clip", str(files.clip), files.clip)
            _fit_tokenizer("clip", clip_tokenizer, clip.config.text_config)
        lost += (*clip_lost, *load_ip_adapter(pipe, files, files.ip_adapter, clip))
    if family.upcasts_vae and dtype == torch.float16 and pipe.vae.config.force_upcast:
        pipe.vae.to(torch.float32)
    for name, network in (*((name, getattr(pipe, name)) for name in family.weights), ("clip", clip)):
        if network is not None:
            waits = model.offload == "encoders" and (network is clip or name in text_encoders)
            network.to("cpu" if waits else device).eval().requires_grad_(False)
            option = "clip" if network is clip else "model"
            check_finite(option, f"the {name} of {files.name!r}", all_tensors(network))
    mean, std = clip_normalisation("clip", files.clip)
    sides = files.bundle.get("grounding_sides", {})
    networks = Networks(
        family=family,
        denoiser=getattr(pipe, family.denoiser),
        vae=pipe.vae,
        text_encoders=text_encoders,
        tokenizers=tokenizers,
        zeroes_nothing=_zeroes_nothing(files),
        clip=clip,
        clip_tokenizer=clip_tokenizer,
        clip_mean=mean,
        clip_std=std,
        alphas_cumprod=alphas,
        scheduler=pipe.scheduler if family.grid is not None else None,
        predicts_velocity=predicts == "v_prediction",
        window_side=family.window_side,
        self_side=sides.get("self") or family.self_side,
        cross_side=sides.get("cross") or family.cross_side,
        unmerged=tuple(keys for keys, _ in merged),
        left_out=(*lost, *(each for _, accounts in merged for each in accounts)),
    )
    _try(files, networks)
    return networks


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep loading bars and advice meant for pipeline users out of the log. What they would say of missing and unused tensors is
    checked and told by the callers, since it is the user's to know."""
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


def choose_dtype(name: str, device: torch.device, half: str = "float16") -> torch.dtype:
    """Resolve `auto`: float32 on the CPU, the family's half precision on CUDA."""
    if name == "auto":
        name = half if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_pipeline(files: ModelFiles, dtype: torch.dtype) -> tuple[Pipeline, tuple[LeftOut, ...]]:
    """Load what edits use of a model's own pipeline; return it and what of its files it has no use for.

    Raises: ConfigError.
    """
    import diffusers

    path = files.diffusers / "scheduler" / "scheduler_config.json"
    _check_levels(path)
    if files.checkpoint is not None:
        return load_checkpoint(files, dtype)
    lost: tuple[LeftOut, ...] = ()
    networks: dict[str, Any] = {}
    classes = _network_classes(files)
    for name in files.family.weights:
        networks[name], told = load_network(
            "model", files.name, classes[name], files.diffusers / name, dtype=dtype, variant=files.variant
        )
        lost += told
    kinds = get_type_hints(pipeline_class(files.family).__init__)
    tokenizers = {
        encoder.tokenizer: load_tokenizer("model", files.name, files.diffusers / encoder.tokenizer, kinds[encoder.tokenizer])
        for encoder in files.family.text_encoders
    }
    kind = getattr(diffusers, _class_named(files, "scheduler"), None)
    with loading("model", files.name, path, getattr(kind, "__init__", None)):
        if kind is None:
            raise ValueError(f"diffusers has no {_class_named(files, 'scheduler')}, which model_index.json names")
        scheduler = kind.from_pretrained(path.parent, local_files_only=True)
    with loading("model", files.name, path):
        return pipeline_class(files.family)(scheduler=scheduler, **without_extras(files.family), **tokenizers, **networks), lost


def _check_levels(path: Path) -> None:
    """Refuse a scheduler of more noise levels than a model can tell apart: it would write a table of them all.

    Raises: ConfigError.
    """
    levels = field("model", path, read_json("model", path), "num_train_timesteps", whole, 1)
    if levels > MAX_LEVELS:
        raise WrongWeights(
            f"model: got a model whose scheduler/{path.name} has num_train_timesteps: {levels}; allowed: up to {MAX_LEVELS}"
        )


def load_network(
    option: str, name: str, kind: Any, folder: Path, *, dtype: torch.dtype, variant: str | None = None
) -> tuple[Any, tuple[LeftOut, ...]]:
    """Load one network of diffusers or transformers; return it and what of its files it has no use for.

    Raises: ConfigError for files that do not load, or lack some of its weights.
    """
    variant, weights = network_weights(option, folder, variant)
    options = {"dtype": dtype, "variant": variant, "use_safetensors": weights[0].suffix == ".safetensors"}
    with loading(option, name, folder / "config.json", kind.__init__):
        network, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    check_whole(
        option,
        f"the {folder.name} of {name!r}, as its {folder.name}/config.json describes it",
        info["missing_keys"],
        len(network.state_dict()),
    )
    unused = list(info["unexpected_keys"])
    total = len(network.state_dict()) + len(unused)
    return network, left_out(f"tensors of {folder.name}", unused, total, f"{kind.__name__} has no such weights")


def _network_classes(files: ModelFiles) -> dict[str, Any]:
    """Return the class of each network: what the family's pipeline takes, which the model's index has to name too.

    Raises: ConfigError for another one.
    """
    hints = get_type_hints(pipeline_class(files.family).__init__)
    for name in files.family.weights:
        wanted, named = hints[name].__name__, _class_named(files, name)
        if named != wanted:
            raise ConfigError(f"model: got {files.name!r}, whose model_index.json has {name}: {named}; allowed: {wanted}")
    return {name: hints[name] for name in files.family.weights}


def _zeroes_nothing(files: ModelFiles) -> bool:
    """Whether rows without any text read zeros: what a model's index says, in families of which some do."""
    name = files.family.zeros_for_nothing
    if name is None:
        return False
    path = files.diffusers / "model_index.json"
    return bool(field("model", path, read_json("model", path), name, truth, True))


def _class_named(files: ModelFiles, part: str) -> str:
    """Return the class that a model's index names for one of its parts."""
    path = files.diffusers / "model_index.json"
    named: str = field("model", path, read_json("model", path), part, library_and_class)[1]
    return named


def _fit_tokenizer(option: str, tokenizer: CLIPTokenizer, text_config: Any, length: int | None = None) -> None:
    """Give the tokenizer the length of its encoder, or the one that its family reads, and refuse one that is not the encoder's (a missing vocabulary file)."""
    if not text_config.vocab_size / 2 <= len(tokenizer) <= text_config.vocab_size:
        raise ConfigError(
            f"{option}: got a tokenizer of {len(tokenizer)} entries for a text encoder of {text_config.vocab_size}; allowed: the "
            "tokenizer that belongs to it (vocab.json and merges.txt, or tokenizer.json)"
        )
    tokenizer.model_max_length = length or text_config.max_position_embeddings


def load_clip(option: str, name: str, folder: Path) -> tuple[Any, tuple[LeftOut, ...]]:
    """Load a CLIP with both towers, or the one that sees pictures, in float32; return it and what of its files it has no use for.

    Raises: ConfigError.
    """
    from transformers import CLIPModel, CLIPVisionModelWithProjection

    kind = CLIPModel if has_both_towers(folder) else CLIPVisionModelWithProjection
    return load_network(option, name, kind, folder, dtype=torch.float32)


def load_clip_tokenizer(option: str, name: str, folder: Path) -> CLIPTokenizer:
    """Load the tokenizer of a CLIP.

    Raises: ConfigError.
    """
    from transformers import CLIPTokenizer

    tokenizer: CLIPTokenizer = load_tokenizer(option, name, folder, CLIPTokenizer)
    return tokenizer


def load_tokenizer(option: str, name: str, folder: Path, kind: Any) -> Any:
    """Load a tokenizer of a class of transformers.

    Raises: ConfigError.
    """
    there = [folder / file for file in TOKENIZER_FILES if (folder / file).is_file()]
    for path in there:
        content = read_json(option, path)
        for key in content if path.name != "vocab.json" else ():
            if key.endswith("_token") and key.startswith(SPECIAL_TOKENS):
                field(option, path, content, key, token, None)
    # Which of its files is wrong a tokenizer does not say.
    with loading(option, name, folder / ", ".join(path.name for path in there)):
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
        if tokenizer.pad_token is None:  # prompts are padded to one length
            raise ValueError("it names no pad_token")
        return tokenizer


def clip_normalisation(option: str, folder: Path | None) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and deviation of the pictures that a CLIP sees, by channel; the original CLIP's where its folder states none.

    Raises: ConfigError naming the file and the field.
    """
    path = folder / "preprocessor_config.json" if folder is not None else None
    if path is None or not path.is_file():
        return CLIP_MEAN, CLIP_STD
    stated = read_json(option, path)
    mean = field(option, path, stated, "image_mean", numbers, CLIP_MEAN)
    return tuple(mean), tuple(field(option, path, stated, "image_std", factors, CLIP_STD))


def _predicted(files: ModelFiles, path: Path) -> str:
    """Return what a model predicts, by its scheduler: its prediction type, or `flow` where its class is one of flow matching."""
    if "FlowMatch" in _class_named(files, "scheduler"):
        return "flow"
    predicts: str = field("model", path, read_json("model", path), "prediction_type", text, "epsilon")
    return predicts


def _alphas_cumprod(files: ModelFiles, path: Path) -> np.ndarray:
    """Return the cumulative alphas of the training levels; the grid is ours, the pipeline's own scheduler is not used."""
    from diffusers import DDIMScheduler

    kept = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
    stated = read_json("model", path)
    with loading("model", files.name, path, DDIMScheduler.__init__):
        scheduler = DDIMScheduler(**{key: stated[key] for key in kept if key in stated})
        alphas: np.ndarray = scheduler.alphas_cumprod.double().numpy()
    if alphas.size < 2 or not np.isfinite(alphas).all() or not (alphas > 0).all() or not (alphas < 1).all():
        raise ConfigError(
            f"model: got {files.name!r}, whose scheduler/{path.name} gives no two noise levels or more between 0 and 1"
        )
    return alphas


@torch.inference_mode()
def _try(files: ModelFiles, networks: Networks) -> None:
    """Make one pass of every network at the smallest size, so that what its config has wrong is known before any edit."""
    family, denoiser, vae, clip = networks.family, networks.denoiser, networks.vae, networks.clip
    path = files.diffusers / "vae" / "config.json"
    field("model", path, vae.config, "scaling_factor", factor)
    with loading("model", files.name, path, type(vae).__init__):
        side = reduction(vae.config) * 2
        latents = vae.encode(torch.zeros(1, 3, side, side, device=vae.device, dtype=vae.dtype)).latent_dist.mode()
        vae.decode(latents)
    for encoder in family.text_encoders:  # what is wrong in one of them is told with its file
        with loading("model", files.name, files.diffusers / encoder.network / "config.json"):
            texts = networks.read_texts(networks.tokenize([""]))
    with loading("model", files.name, files.diffusers / family.denoiser / "config.json", type(denoiser).__init__):
        side = family.least_latents(denoiser.config, vae.config)
        noisy = torch.zeros(1, latents.shape[1], side, side, device=denoiser.device, dtype=denoiser.dtype)
        image = {} if clip is None else {"image": torch.zeros(1, 1, clip.config.projection_dim, device=denoiser.device)}
        more = family.describe(1, (side * reduction(vae.config),) * 2, denoiser.device)
        conditioning = Conditioning({**texts, **image, **more}).each(lambda tensor: tensor.to(denoiser.device, denoiser.dtype))
        family.call(denoiser, noisy, torch.tensor(1, device=denoiser.device), conditioning, None)
    if clip is not None and files.clip is not None:
        with loading("clip", str(files.clip), files.clip / "config.json"):
            try_clip(clip)


@torch.inference_mode()
def try_clip(clip: Any) -> None:
    """Make one pass of the towers of a CLIP."""
    vision = getattr(clip.config, "vision_config", clip.config)
    pixels = torch.zeros(1, 3, vision.image_size, vision.image_size, device=clip.device, dtype=clip.dtype)
    clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
    if hasattr(clip, "text_model"):
        length = clip.config.text_config.max_position_embeddings
        ids = torch.zeros(1, length, dtype=torch.long, device=clip.device)
        clip.text_projection(clip.text_model(input_ids=ids).pooler_output)
