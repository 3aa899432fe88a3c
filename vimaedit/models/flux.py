"""FLUX.1: a rectified flow with guidance as an input, T5 with a pooled CLIP, double and single blocks of joint attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vimaedit.attention.sites import Site, joint_sites
from vimaedit.methods.fit import Denoiser
from vimaedit.models.family import Config, Family, ImagePrompt, TextEncoder, Texts, install_jointly, reduction
from vimaedit.step.flow_grids import even_grid

if TYPE_CHECKING:
    from torch import Tensor

    from vimaedit.attention.control import AttentionControl
    from vimaedit.models.conditioning import Conditioning

PATCH = 2  # latent pixels along a token's side
CLIP, T5 = "text_encoder", "text_encoder_2"
CANVAS = 1024  # px; no config says it


def sizes(transformer: Config, autoencoder: Config) -> tuple[int, int]:
    """Return the side of the training's pictures, and what sides are multiples of, in px."""
    return CANVAS, reduction(autoencoder) * PATCH


def read_texts(encoders: Mapping[str, Any], ids: Mapping[str, Tensor]) -> Texts:
    """Encode token ids (M, T) to T5's states, padding included, and to CLIP's pooled text, `pooled` (M, P)."""
    return {"text": encoders[T5](ids[T5])[0], "pooled": encoders[CLIP](ids[CLIP]).pooler_output}


def call(
    transformer: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning, control: AttentionControl | None
) -> Tensor:
    """Ask for the velocity, (R, C, h, w) -> (R, C, h, w). `guidance` (R,): 1 where rows are told none."""
    import torch

    rows, _, height, width = latents.shape
    positions = torch.zeros(height // PATCH, width // PATCH, 3, device=latents.device)
    positions[..., 1] += torch.arange(height // PATCH, device=latents.device)[:, None]
    positions[..., 2] += torch.arange(width // PATCH, device=latents.device)
    num_text = conditioning["text"].shape[1]
    guidance = None
    if transformer.config.guidance_embeds:
        guidance = conditioning.tensors.get("guidance", torch.ones(rows, device=latents.device))
    images = {"ip_adapter_image_embeds": [conditioning["image"]]} if "image" in conditioning.tensors else {}
    velocity: Tensor = transformer(
        pack(latents),
        conditioning["text"],
        conditioning["pooled"],
        (timestep / 1000).expand(rows),
        img_ids=positions.flatten(0, 1),
        txt_ids=torch.zeros(num_text, 3, device=latents.device),
        guidance=guidance,
        joint_attention_kwargs=images | ({} if control is None else {"control": control, "num_text": num_text}),
        return_dict=False,
    )[0]
    return unpack(velocity, height, width)


def pack(latents: Tensor) -> Tensor:
    """Turn cells of 2 x 2 latent pixels into tokens, channels outermost: (R, C, h, w) -> (R, h/2 w/2, 4 C)."""
    cells = latents.unflatten(2, (-1, PATCH)).unflatten(4, (-1, PATCH))
    packed: Tensor = cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return packed


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Turn tokens back into latents, (R, h/2 w/2, 4 C) -> (R, C, h, w)."""
    cells = tokens.unflatten(2, (-1, PATCH, PATCH)).unflatten(1, (height // PATCH, width // PATCH))
    unpacked: Tensor = cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    return unpacked


def sites(transformer: Any) -> tuple[Site, ...]:
    """List the joint attention of the later half of the double blocks and of the single ones. The first blocks are left alone: they set
    the picture's layout, and routing every block copies the source."""
    num_double, num_single = len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)
    later = range(min((num_double + 1) // 2, num_double - 1), num_double)  # 10 to 18 of 19
    double = joint_sites("transformer_blocks", later, 1 / PATCH, later)
    single = joint_sites("single_transformer_blocks", range(num_single), 1 / PATCH, range(0), path="single", before=num_double)
    return (*double, *single)


def adapter_tensors(transformer: Any) -> set[str]:
    """Name the attention's tensors of an adapter: it has weights for every double block."""
    layers = [f"{layer}.{kind}" for layer in ("to_k_ip", "to_v_ip") for kind in ("weight", "bias")]
    return {f"ip_adapter.{number}.{layer}" for number in range(len(transformer.transformer_blocks)) for layer in layers}


FLUX = Family(
    name="flux",
    title="FLUX.1",
    folder="flux",
    pipeline="FluxPipeline",
    layouts=("FluxPipeline",),
    networks=("transformer", "vae"),
    text_encoders=(
        TextEncoder(network=T5, tokenizer="tokenizer_2", checkpoint="text_encoders.t5xxl.", length=512),
        TextEncoder(network=CLIP, tokenizer="tokenizer", checkpoint="text_encoders.clip_l."),
    ),
    configs="black-forest-labs/FLUX.1-dev",
    predictions=("flow",),
    image_prompts=(
        ImagePrompt(
            adapter="XLabs-AI/flux-ip-adapter",
            file="ip_adapter.safetensors",
            clip="openai/clip-vit-large-patch14",
            text_width=4096,
            width=768,
            clip_side=224,
        ),
    ),
    recipe={
        "target_guidance": 3.5,
        # As FlowEdit is published for it: 24 of 28 steps.
        "methods": {"flowedit": {"steps": 28, "skip": 0.142, "source_guidance": 1.5, "target_guidance": 5.5}},
    },
    prompts_by_name=True,
    adapter_tensors=adapter_tensors,
    image_encoder_option="image_encoder_pretrained_model_name_or_path",
    lone_denoiser="double_blocks.0.img_attn",
    sizes=sizes,
    window_side=1 / PATCH,
    self_side=1 / PATCH,
    cross_side=1 / PATCH,
    read_texts=read_texts,
    call=call,
    contexts=None,
    sites=sites,
    install=install_jointly,
    grid=even_grid,
    kind=Denoiser(is_flow=True, is_joint=True, embeds_guidance=True),
    cell=PATCH,
    half="bfloat16",  # as it is published; activations overflow in float16
)
