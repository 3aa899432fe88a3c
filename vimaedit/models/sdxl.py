"""Stable Diffusion XL: two text encoders side by side, a pooled text and the sizes of the picture beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vimaedit.models.family import Family, ImagePrompt, Size, TextEncoder, Texts, unet_sizes

if TYPE_CHECKING:
    from torch import Tensor, device

PUBLIC_ADAPTERS = "h94/IP-Adapter"


def read_texts(encoders: Mapping[str, Any], ids: Mapping[str, Tensor]) -> Texts:
    """Encode token ids (M, T) of both encoders to the states before their last layers, side by side, (M, T, E + E'), and the second's
    projected text, (M, P)."""
    import torch

    read = [encoder(ids[name], output_hidden_states=True) for name, encoder in encoders.items()]
    return {"text": torch.cat([each.hidden_states[-2] for each in read], dim=-1), "text_embeds": read[-1].text_embeds}


def describe(num_rows: int, size: Size, place: device) -> Texts:
    """Tell every row the height and width of the picture before it was cropped, where it was cropped, and the canvas's, (R, 6) in px."""
    import torch

    return {"time_ids": torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=place).expand(num_rows, -1)}


SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    folder="sdxl",
    pipeline="StableDiffusionXLPipeline",
    layouts=("StableDiffusionXLPipeline",),
    networks=("unet", "vae"),
    text_encoders=(
        TextEncoder(network="text_encoder", tokenizer="tokenizer", checkpoint="conditioner.embedders.0."),
        TextEncoder(network="text_encoder_2", tokenizer="tokenizer_2", checkpoint="conditioner.embedders.1."),
    ),
    configs="stabilityai/stable-diffusion-xl-base-1.0",
    predictions=("epsilon", "v_prediction"),
    image_prompts=(
        ImagePrompt(
            adapter=PUBLIC_ADAPTERS,
            file="sdxl_models/ip-adapter_sdxl_vit-h.safetensors",
            clip="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            text_width=2048,
            width=1024,
            clip_side=224,
        ),
        ImagePrompt(
            adapter=PUBLIC_ADAPTERS,
            file="sdxl_models/ip-adapter_sdxl.safetensors",
            clip=f"{PUBLIC_ADAPTERS}/sdxl_models/image_encoder",  # ViT-bigG; its text tower is the second text encoder
            text_width=2048,
            width=1280,
            clip_side=224,
        ),
    ),
    sizes=unet_sizes,
    # The published rule is absolute: self-attention of at most 1,024 tokens, which at 1024 px is a quarter of the latent's side.
    window_side=0.25,
    self_side=0.25,
    cross_side=0.25,
    read_texts=read_texts,
    describe=describe,
    zeros_for_nothing="force_zeros_for_empty_prompt",
    shared_space=("text_encoder_2", "text_embeds"),
    guided_up_to=1000,
    noiseless=3,
    upcasts_vae=True,
)
