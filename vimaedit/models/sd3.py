"""Stable Diffusion 3 and 3.5: a rectified flow, two CLIPs and T5, joint attention of picture and text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vimaedit.attention.sites import Site, joint_sites
from vimaedit.methods.fit import Denoiser
from vimaedit.models.family import Config, Family, TextEncoder, Texts, install_jointly, reduction, trained_side
from vimaedit.step.flow_grids import own_grid

if TYPE_CHECKING:
    from torch import Tensor

    from vimaedit.attention.control import AttentionControl
    from vimaedit.models.conditioning import Conditioning

PATCH = 2  # latent pixels along a token's side
CLIPS, T5 = ("text_encoder", "text_encoder_2"), "text_encoder_3"
SIDE, MAX_SIDE = 128, 96  # of latents, and of the table of positions in tokens, where a config does not say: those of diffusers
GROUNDING = (1 / 3, 3 / 4)  # of the depth: blocks 8 to 17 of 24


def sizes(transformer: Config, autoencoder: Config) -> tuple[int, int]:
    """Return the side of the training's pictures, and what sides are multiples of, in px."""
    return trained_side({"sample_size": SIDE, **transformer}) * reduction(autoencoder), reduction(autoencoder) * PATCH


def largest_side(transformer: Config, autoencoder: Config) -> int:
    """Return the side of what the table of positions covers, in px."""
    return int(transformer.get("pos_embed_max_size", MAX_SIDE)) * PATCH * reduction(autoencoder)


def read_texts(encoders: Mapping[str, Any], ids: Mapping[str, Tensor]) -> Texts:
    """Encode token ids (M, T) to states: those of both CLIPs before their last layers side by side, filled up with zeros to the width
    of T5, then T5's; and both CLIPs' projected texts, `pooled` (M, P). T5's padding is read like words."""
    import torch
    import torch.nn.functional as F

    clips = [encoders[name](ids[name], output_hidden_states=True) for name in CLIPS]
    long = encoders[T5](ids[T5])[0]
    short = torch.cat([each.hidden_states[-2] for each in clips], dim=-1)
    short = F.pad(short, (0, long.shape[-1] - short.shape[-1])).to(long.dtype)
    return {
        "text": torch.cat([short, long], dim=1),
        "pooled": torch.cat([each.text_embeds for each in clips], dim=-1),
    }


def call(
    transformer: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning, control: AttentionControl | None
) -> Tensor:
    """Ask for the velocity, (R, C, h, w) -> (R, C, h, w)."""
    velocity: Tensor = transformer(
        latents,
        conditioning["text"],
        conditioning["pooled"],
        timestep.expand(len(latents)),
        joint_attention_kwargs=None if control is None else {"control": control},
        return_dict=False,
    )[0]
    return velocity


def sites(transformer: Any) -> tuple[Site, ...]:
    """List the joint attention of all blocks, and the second attention of those that have one, which the picture has for itself."""
    total = len(transformer.transformer_blocks)
    first, last = (round(share * total) for share in GROUNDING)
    second = [
        Site(name=f"transformer_blocks.{number}.attn2.processor", path="double", side=1 / PATCH, cross=False, grounds=False)
        for number, block in enumerate(transformer.transformer_blocks)
        if block.attn2 is not None
    ]
    return (*joint_sites("transformer_blocks", range(total), 1 / PATCH, range(first, last)), *second)


SD3 = Family(
    name="sd3",
    title="Stable Diffusion 3",
    folder="sd3",
    pipeline="StableDiffusion3Pipeline",
    layouts=("StableDiffusion3Pipeline",),
    networks=("transformer", "vae"),
    text_encoders=(
        TextEncoder(network=CLIPS[0], tokenizer="tokenizer", checkpoint="text_encoders.clip_l."),
        TextEncoder(network=CLIPS[1], tokenizer="tokenizer_2", checkpoint="text_encoders.clip_g."),
        TextEncoder(network=T5, tokenizer="tokenizer_3", checkpoint="text_encoders.t5xxl.", length=256),
    ),
    configs="stabilityai/stable-diffusion-3.5-medium",
    predictions=("flow",),
    image_prompts=(),
    lone_denoiser="joint_blocks.0.x_block",
    sizes=sizes,
    largest_side=largest_side,
    window_side=1 / PATCH,
    self_side=1 / PATCH,
    cross_side=1 / PATCH,
    read_texts=read_texts,
    call=call,
    contexts=None,
    sites=sites,
    install=install_jointly,
    grid=own_grid,
    kind=Denoiser(is_flow=True, is_joint=True),
    more_words=((T5, 0.3),),
)
