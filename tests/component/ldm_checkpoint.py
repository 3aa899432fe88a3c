"""Write a diffusers folder as a single checkpoint file in the original latent-diffusion layout, for loading tests."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn": "attn",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding": "positional_embedding",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_checkpoint(folder: Path, path: Path, *, layers: int, levels: int) -> None:
    """Write `folder` (unet, vae, text_encoder) to `path`; `layers` per block and `levels` of the UNet."""
    state: dict[str, torch.Tensor] = {}
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    attends_up = {int(key.split(".")[1]) for key in unet if re.match(r"up_blocks\.\d+\.attentions", key)}
    for key, value in unet.items():
        state["model.diffusion_model." + _unet_key(key, layers, attends_up)] = value
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    vae_levels = 1 + max(int(key.split(".")[2]) for key in vae if key.startswith("decoder.up_blocks."))
    for key, value in vae.items():
        name = _vae_key(key, vae_levels)
        is_projection = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", name)
        state["first_stage_model." + name] = value[..., None, None] if is_projection else value
    second = folder / "text_encoder_2" / "model.safetensors"
    first = "conditioner.embedders.0." if second.is_file() else "cond_stage_model."
    for key, value in load_file(folder / "text_encoder" / "model.safetensors").items():
        state[first + "transformer." + (key if key.startswith("text_model.") else f"text_model.{key}")] = value
    if second.is_file():
        state |= {f"conditioner.embedders.1.model.{key}": value for key, value in _open_clip(load_file(second)).items()}
    save_file({key: value.contiguous() for key, value in state.items()}, path)


def _open_clip(encoder: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name a text encoder's tensors as OpenCLIP does, which has queries, keys and values in one and its projection transposed."""
    state: dict[str, torch.Tensor] = {}
    for key, value in encoder.items():
        name = key.removeprefix("text_model.")
        for own, original in OPEN_CLIP.items():
            name = name.replace(own, original)
        if ".q_proj." in name:
            parts = [encoder[key.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            state[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
        elif name == "text_projection.weight":
            state["text_projection"] = value.T
        elif not re.search(r"\.[kv]_proj\.|position_ids", name):
            state[name.removesuffix(".weight") if name == "positional_embedding.weight" else name] = value
    return state


def _unet_key(key: str, layers: int, attends_up: set[int]) -> str:
    for own, original in UNET_ENDS.items():
        if key.startswith(own + "."):
            return original + key[len(own) :]
    kind, *rest = key.split(".")
    if kind == "mid_block":
        module, number, *tail = rest
        place = "middle_block.1" if module == "attentions" else f"middle_block.{0 if number == '0' else 2}"
    else:
        block, (module, number, *tail) = int(rest[0]), rest[1:]
        if kind == "down_blocks":
            if module == "downsamplers":
                return f"input_blocks.{(layers + 1) * (block + 1)}.0.op.{tail[-1]}"
            place = f"input_blocks.{(layers + 1) * block + int(number) + 1}.{int(module == 'attentions')}"
        else:
            if module == "upsamplers":
                return f"output_blocks.{(layers + 1) * block + layers}.{1 + int(block in attends_up)}.{'.'.join(tail)}"
            place = f"output_blocks.{(layers + 1) * block + int(number)}.{int(module == 'attentions')}"
    if module == "resnets":
        tail[0] = RESNET[tail[0]]
    return ".".join([place, *tail])


def _vae_key(key: str, levels: int) -> str:
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if "mid_block.attentions.0" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1")
        for own, original in VAE_ATTENTION.items():
            key = key.replace(f"attn_1.{own}.", f"attn_1.{original}.")
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key)
    return key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
