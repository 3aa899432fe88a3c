"""Stable Diffusion 1.x and what is laid out like it, the built-in models among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vimaedit.models.family import Family, ImagePrompt, TextEncoder, Texts, unet_sizes

if TYPE_CHECKING:
    from torch import Tensor


def read_texts(encoders: Mapping[str, Any], ids: Mapping[str, Tensor]) -> Texts:
    """Encode token ids (M, T) to the states of the last layer, normalised, (M, T, E)."""
    return {"text": encoders["text_encoder"](ids["text_encoder"])[0]}


SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    folder="sd",
    pipeline="StableDiffusionPipeline",
    layouts=("StableDiffusionPipeline", "LatentConsistencyModelPipeline"),
    networks=("unet", "vae"),
    text_encoders=(TextEncoder(network="text_encoder", tokenizer="tokenizer", checkpoint="cond_stage_model."),),
    configs="stable-diffusion-v1-5/stable-diffusion-v1-5",
    predictions=("epsilon", "v_prediction"),
    image_prompts=(
        ImagePrompt(
            adapter="h94/IP-Adapter",
            file="models/ip-adapter_sd15.safetensors",
            clip="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            text_width=768,
            width=1024,
            clip_side=224,
        ),
    ),
    sizes=unet_sizes,
    window_side=0.5,
    self_side=0.5,
    cross_side=0.25,
    read_texts=read_texts,
)
