"""The built-in models `random` and `random-xl`: a Stable Diffusion and a Stable Diffusion XL at toy size with an IP-Adapter and a CLIP,
weights drawn; and others like them.

Its pictures mean nothing. Weights are drawn so that the parts behave like trained ones in scale: attention neither flat nor
saturated, noise predictions and latents of ordinary size.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vimaedit.errors import ConfigError
from vimaedit.miniature.bundle_files import (
    ADAPTER_FILE,
    write_adapter,
    write_model_index,
    write_preprocessor,
    write_transformer,
)
from vimaedit.miniature.vocabulary import LENGTH, vocabulary, write_json, write_tokenizer

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPModel

LAYOUT_VERSION = 3  # raise it whenever a file changes: finished bundles lie in people's caches under this number
CONTEXT_SIZE = 64  # width of the UNet's text context
SIZES_SIZE = 16  # of each of the six numbers that say how large a picture is and where it was cropped, in an XL's embedding
EMBEDDING_SIZE = 48  # width of the space that CLIP's two towers share
CLIP_SIDE = 64  # px
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGE_TOKENS = 4
SCALING_FACTOR = 0.18215
WARNING = "random weights: the pictures mean nothing"

# Standard deviation of what a matrix makes of inputs of unit variance; the first fragment found in a parameter's name decides.
# Attention logits have the product of the query's and the key's gain: both see normalised inputs.
UNET_GAINS = {"to_q": 1.3, "to_k": 1.3, "conv_out": 0.3}
VAE_GAINS = {"decoder.conv_out": 0.8, "post_quant_conv": 1.0, "quant_conv": 10.0}
CLIP_GAINS = {"position_embedding": 0.3, "embedding": 1.0, "q_proj": 1.3, "k_proj": 1.3, "out_proj": 0.7, "fc2": 0.7}
LOOKUP_TABLES = (
    "token_embedding",
    "position_embedding",
    "class_embedding",
    "shared",
    "relative_attention_bias",
)  # rows are picked, nothing is summed
BIAS_SIZE = 0.1


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shape of a model with drawn weights. `canvas_size` in px, 8 per latent; `heads` of the UNet's attention layers.

    `channels` has one entry per side of the UNet; the last side, the coarsest, has no cross-attention. `second_size`: width of an XL's
    second text encoder, whose UNet has cross-attention at all sides but the first.
    """

    name: str
    canvas_size: int
    channels: tuple[int, ...]
    layers_per_block: int
    heads: int
    grounding_sides: tuple[float, float]  # of self- and cross-attention, over the latent's side
    context_size: int = CONTEXT_SIZE  # width of the UNet's text context
    vae_channels: tuple[int, ...] = (16, 32, 32, 32)
    second_size: int | None = None

    @property
    def text_size(self) -> int:
        """Width of all that the UNet's layers read of a text."""
        return self.context_size + (self.second_size or 0)


MINIATURE = Layout(
    name="random", canvas_size=128, channels=(48, 96, 96), layers_per_block=1, heads=4, grounding_sides=(0.5, 0.5)
)

XL = Layout(
    name="random-xl",
    canvas_size=128,
    channels=(32, 48, 64),
    layers_per_block=1,
    heads=4,
    grounding_sides=(0.5, 0.5),
    context_size=32,
    second_size=64,
)
DRAWN = {layout.name: layout for layout in (MINIATURE, XL)}
XL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}


def random_bundle(
    cache_root: Path | None = None, *, name: str = MINIATURE.name, write: Callable[[Path], None] | None = None
) -> Path:
    """Return the folder of one of the built-in models, built at first use under the user's cache.

    `cache_root` is the folder it lies in, by default `$XDG_CACHE_HOME/vimaedit` or `~/.cache/vimaedit`. Several processes may
    ask at once: each builds in a folder of its own, the first to finish gives the result its name. `write`: fills the folder of one that
    has no `Layout`.

    Raises: ConfigError if the cache cannot be written.
    """
    if cache_root is None:
        cache_root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vimaedit"
    folder = cache_root / f"{name}-v{LAYOUT_VERSION}"
    if folder.is_dir():
        return folder
    try:
        cache_root.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache_root))
    except OSError as error:
        raise ConfigError(
            f"model: got {name}, whose folder {folder} cannot be made ({error.strerror}); allowed: XDG_CACHE_HOME naming a folder that "
            "can be written, or a model of your own"
        ) from error
    try:
        if write is None:
            write_random_bundle(building, layout=DRAWN[name])
        else:
            write(building)
        building.chmod(0o755)  # mkdtemp's are for one user alone
        os.rename(building, folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same bytes
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def write_random_bundle(folder: Path, *, seed: int = 0, layout: Layout = MINIATURE) -> None:
    """Write a model as a bundle folder: `sd/` or `sdxl/`, `ip_adapter/`, `clip/` and `bundle.json`.

    The same bytes for one seed on every machine, whatever ran before; the global random state is left as it was.
    """
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    second = None
    with torch.random.fork_rng(devices=[]):  # the constructors draw weights that are then overwritten
        unet = UNet2DConditionModel(**_unet_settings(layout))
        vae = AutoencoderKL(**_vae_settings(layout))
        text_encoder = CLIPTextModel(CLIPTextConfig(**text_settings(layout.context_size)))
        if layout.second_size is not None:
            second = CLIPTextModelWithProjection(CLIPTextConfig(**text_settings(layout.second_size)))
        clip = _clip_model()
    redraw(unet, f"{seed}:unet", UNET_GAINS)
    redraw(vae, f"{seed}:vae", VAE_GAINS)
    redraw(text_encoder, f"{seed}:text_encoder", CLIP_GAINS)
    redraw(clip, f"{seed}:clip", CLIP_GAINS)

    sd = folder / ("sd" if second is None else "sdxl")
    unet.save_pretrained(sd / "unet")
    vae.save_pretrained(sd / "vae")
    write_transformer(text_encoder, sd / "text_encoder")
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    ).save_pretrained(sd / "scheduler")
    write_tokenizer(sd / "tokenizer")
    write_preprocessor(sd / "feature_extractor", side=CLIP_SIDE, mean=CLIP_MEAN, std=CLIP_STD)
    if second is not None:
        redraw(second, f"{seed}:text_encoder_2", CLIP_GAINS)
        write_transformer(second, sd / "text_encoder_2")
        write_tokenizer(sd / "tokenizer_2", padding="!")
    write_model_index(sd, None if second is None else XL_INDEX)

    write_transformer(clip, folder / "clip")
    write_tokenizer(folder / "clip")
    write_preprocessor(folder / "clip", side=CLIP_SIDE, mean=CLIP_MEAN, std=CLIP_STD)
    place, name = ("models", ADAPTER_FILE) if second is None else ("sdxl_models", "ip-adapter_sdxl_vit-h.safetensors")
    write_adapter(folder / "ip_adapter" / place, _adapter_weights(unet, seed, layout.text_size), clip, name)
    write_json(
        folder / "bundle.json",
        {
            "name": layout.name,
            "canvas_size": layout.canvas_size,
            "grounding_sides": dict(zip(("self", "cross"), layout.grounding_sides, strict=True)),
            "warning": WARNING,
        },
    )


def _unet_settings(layout: Layout) -> dict[str, object]:
    sides = len(layout.channels) - 1
    down, up = ("CrossAttnDownBlock2D",) * sides, ("CrossAttnUpBlock2D",) * sides
    own: dict[str, object] = {}
    kinds: tuple[tuple[str, ...], tuple[str, ...]] = ((*down, "DownBlock2D"), ("UpBlock2D", *up))
    if layout.second_size is not None:
        kinds = (("DownBlock2D", *down), (*up, "UpBlock2D"))
        own = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZES_SIZE,
            "projection_class_embeddings_input_dim": 6 * SIZES_SIZE + EMBEDDING_SIZE,
            "transformer_layers_per_block": (1,) * sides + (2,),
            "use_linear_projection": True,
        }
    return {
        **own,
        "sample_size": layout.canvas_size // 8,
        "block_out_channels": layout.channels,
        "down_block_types": kinds[0],
        "up_block_types": kinds[1],
        "layers_per_block": layout.layers_per_block,
        "attention_head_dim": layout.heads,  # the number of heads: this class has the two names swapped
        "cross_attention_dim": layout.text_size,
        "norm_num_groups": 16,
    }


def _vae_settings(layout: Layout) -> dict[str, object]:
    return {
        "sample_size": layout.canvas_size,
        "block_out_channels": layout.vae_channels,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "scaling_factor": SCALING_FACTOR,
    }


def text_settings(width: int) -> dict[str, object]:
    """Return the config of a text encoder of CLIP's kind."""
    vocabulary_size = len(vocabulary()[0])
    return {
        "vocab_size": vocabulary_size,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": EMBEDDING_SIZE,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "bos_token_id": vocabulary_size - 2,
        "eos_token_id": vocabulary_size - 1,
        "pad_token_id": vocabulary_size - 1,
    }


def _clip_model() -> CLIPModel:
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "projection_dim": EMBEDDING_SIZE,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": CLIP_SIDE,
        "patch_size": 16,
    }
    return CLIPModel(CLIPConfig(text_config=text_settings(CONTEXT_SIZE), vision_config=vision, projection_dim=EMBEDDING_SIZE))


def _adapter_weights(unet: UNet2DConditionModel, seed: int, width: int) -> dict[str, torch.Tensor]:
    shapes = {
        "image_proj.proj.weight": (IMAGE_TOKENS * width, EMBEDDING_SIZE),
        "image_proj.proj.bias": (IMAGE_TOKENS * width,),
        "image_proj.norm.weight": (width,),
        "image_proj.norm.bias": (width,),
    }
    for index, name in enumerate(unet.attn_processors):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        if attention.is_cross_attention:  # numbered among all attentions, so cross-attentions have the odd numbers
            for projection in ("to_k_ip", "to_v_ip"):
                shapes[f"ip_adapter.{index}.{projection}.weight"] = (attention.inner_dim, width)
    return {name: _draw(f"{seed}:ip_adapter:{name}", shape, {}) for name, shape in shapes.items()}


def redraw(network: torch.nn.Module, key: str, gains: Mapping[str, float]) -> None:
    """Replace every parameter by the numbers that belong to its name, so that no order of construction matters."""
    for name, parameter in network.named_parameters():
        if parameter.ndim > 0:  # CLIP's scalar temperature stays
            parameter.data = _draw(f"{key}:{name}", tuple(parameter.shape), gains)


def _draw(key: str, shape: tuple[int, ...], gains: Mapping[str, float]) -> torch.Tensor:
    """Return one parameter, a function of its key and shape alone.

    Numbers are uniform and made of the generator's raw bits by exact operations: neither the processor nor the version of a
    library shows in them.
    """
    import torch

    name = key.rsplit(":", 1)[-1]
    if "norm" in name.split(".")[-2]:
        return torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
    if len(shape) == 1 and name.endswith("bias"):
        size = BIAS_SIZE
    else:
        gain = next((value for fragment, value in gains.items() if fragment in name), 1.0)
        inputs = 1 if any(table in name for table in LOOKUP_TABLES) else int(np.prod(shape[1:]))
        size = gain / inputs**0.5
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "big")
    bits = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    uniform = (bits >> 11).astype(np.float64) * 2.0**-52 - 1.0  # -1 to 1, variance 1/3
    return torch.from_numpy((uniform * (3**0.5 * size)).astype(np.float32).reshape(shape))
