"""Stable Diffusion 1.x and what is laid out like it, the built-in models among them."""

from __future__ import annotations

from vimaedit.models.family import Family, ImagePrompt, unet_sizes

SD1 = Family(
    title="Stable Diffusion 1.x",
    pipeline="StableDiffusionPipeline",
    layouts=("StableDiffusionPipeline", "LatentConsistencyModelPipeline"),
    networks=("unet", "vae", "text_encoder"),
    configs="stable-diffusion-v1-5/stable-diffusion-v1-5",
    predictions=("epsilon", "v_prediction"),
    image_prompt=ImagePrompt(
        adapter="h94/IP-Adapter",
        file="models/ip-adapter_sd15.safetensors",
        clip="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        text_width=768,
        clip_side=224,
    ),
    sizes=unet_sizes,
    window_side=0.5,
    self_side=0.5,
    cross_side=0.25,
)
