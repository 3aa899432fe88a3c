"""A tiny InstructPix2Pix with random weights, as a folder: a pipeline of diffusers that edits by instructions."""

from __future__ import annotations

from pathlib import Path

import torch

from vimaedit.miniature.random_bundle import random_bundle


def write_pix2pix(folder: Path) -> Path:
    """Write it, with the encoders of the random bundle: 128 px, 16 x 16 latents."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    sd = random_bundle() / "sd"
    text_encoder = CLIPTextModel.from_pretrained(sd / "text_encoder")
    vae = AutoencoderKL.from_pretrained(sd / "vae")
    torch.manual_seed(7)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=2 * vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=(16, 24),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=text_encoder.config.hidden_size,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    pipe = StableDiffusionInstructPix2PixPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(sd / "tokenizer"),
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder
