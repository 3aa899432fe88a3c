"""The networks of the built-in model `miniature`: their sizes, and nothing of how they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vimaedit.miniature.vocabulary import vocabulary

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTextModel

CANVAS_SIZE = 128  # px
VAE_FACTOR = 8  # px per latent
LATENT_CHANNELS = 32
MAX_TOKENS = 48  # the longest caption of the scene world has 33
CONTEXT_SIZE = 128  # width of the UNet's text context
EMBEDDING_SIZE = 64  # width of the space that CLIP's two towers share
CLIP_SIDE = 64  # px
CLIP_MEAN, CLIP_STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # of the pictures that CLIP sees
IMAGE_TOKENS = 4
GROUNDING_SIDES = {"self": 1.0, "cross": 1.0}  # over the latent side: its 16 x 16 latents leave nothing to see at a quarter
VAE_CHANNELS = (16, 32, 64, 96)
VAE_GROUPS = 8
UNET_CHANNELS = (48, 96, 96)

SCHEDULE: dict[str, Any] = {
    # The last level holds next to nothing of the picture: its large areas would still show through what is usual for SD.
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    # The clean picture is told from pure noise without dividing by how little of it is left.
    "prediction_type": "v_prediction",
}


def new_autoencoder() -> AutoencoderKL:
    """Build the autoencoder, factor 8, weights drawn."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=CANVAS_SIZE,
        block_out_channels=VAE_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=VAE_GROUPS,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def new_unet(channels: Sequence[int] = UNET_CHANNELS) -> UNet2DConditionModel:
    """Build the UNet, of 3.4 million parameters, with cross-attention at its two upper sides and in the middle, weights drawn."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=CANVAS_SIZE // VAE_FACTOR,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=tuple(channels),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,  # the number of heads: this class has the two names swapped
        cross_attention_dim=CONTEXT_SIZE,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Return the noise levels, 1000 of them."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULE)


def new_text_encoder() -> CLIPTextModel:
    """Build the text encoder, trained along with the UNet, weights drawn."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**_text_settings(CONTEXT_SIZE, layers=3)))


def new_clip() -> CLIPModel:
    """Build a CLIP with both towers, weights drawn."""
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": 96,
        "intermediate_size": 288,
        "projection_dim": EMBEDDING_SIZE,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": CLIP_SIDE,
        "patch_size": 8,
    }
    return CLIPModel(CLIPConfig(text_config=_text_settings(96, layers=2), vision_config=vision, projection_dim=EMBEDDING_SIZE))


def _text_settings(width: int, *, layers: int) -> dict[str, Any]:
    size = len(vocabulary()[0])
    return {
        "vocab_size": size,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "projection_dim": EMBEDDING_SIZE,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
        "pad_token_id": size - 1,
    }
