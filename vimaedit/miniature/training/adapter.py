"""The stage that trains the IP-Adapter: keys and values for four image tokens beside the text, the rest of the UNet held fixed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel

from vimaedit.miniature.family import CONTEXT_SIZE, EMBEDDING_SIZE, IMAGE_TOKENS, new_scheduler
from vimaedit.miniature.training.contrastive import clip_pixels
from vimaedit.miniature.training.corrections import FIRST_TIMESTEP, PairDraw, mix
from vimaedit.miniature.training.data import clip_views, render_batch, to_pixels, tokenize, validation_scene
from vimaedit.miniature.training.denoiser import (
    add_noise,
    arithmetic,
    attention_kernels,
    level_weights,
    spread_timesteps,
    velocity_to,
)

BATCH = 20
CORRECTIONS = 0.5  # of a batch's pictures: their embedding is that of what is wanted
DROPPED_PROMPTS = 0.4  # the picture alone has to be able to steer
DROPPED_PICTURES = 0.1
_EVALUATED = 128


def adapt(unet: UNet2DConditionModel, weights: Mapping[str, Tensor] | None = None) -> UNet2DConditionModel:
    """Give a UNet an IP-Adapter, from its file's weights or untrained, keys and values starting as the text's; it alone learns."""
    unet.requires_grad_(False)
    unet._load_ip_adapter_weights([_untrained(unet) if weights is None else _parts(weights)], low_cpu_mem_usage=False)
    unet.encoder_hid_proj.requires_grad_(True)
    for _, attention in _numbered_cross_attentions(unet):
        attention.processor.requires_grad_(True)
    return unet


def adapter_weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Return the weights of a UNet's IP-Adapter by the names of its file."""
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    weights = {
        "image_proj.proj.weight": projection.image_embeds.weight,
        "image_proj.proj.bias": projection.image_embeds.bias,
        "image_proj.norm.weight": projection.norm.weight,
        "image_proj.norm.bias": projection.norm.bias,
    }
    for index, attention in _numbered_cross_attentions(unet):
        weights[f"ip_adapter.{index}.to_k_ip.weight"] = attention.processor.to_k_ip[0].weight
        weights[f"ip_adapter.{index}.to_v_ip.weight"] = attention.processor.to_v_ip[0].weight
    return weights


def _untrained(unet: UNet2DConditionModel) -> dict[str, dict[str, Tensor]]:
    projection = nn.Linear(EMBEDDING_SIZE, IMAGE_TOKENS * CONTEXT_SIZE)
    weights = {}
    for index, attention in _numbered_cross_attentions(unet):
        weights[f"{index}.to_k_ip.weight"] = attention.to_k.weight.clone()
        weights[f"{index}.to_v_ip.weight"] = attention.to_v.weight.clone()
    norm = {"norm.weight": torch.ones(CONTEXT_SIZE), "norm.bias": torch.zeros(CONTEXT_SIZE)}
    image_proj = {"proj.weight": projection.weight.detach(), "proj.bias": projection.bias.detach(), **norm}
    return {"image_proj": image_proj, "ip_adapter": weights}


def _parts(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort the names of an IP-Adapter's file by what stands before their first dot."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    return parts


def _numbered_cross_attentions(unet: UNet2DConditionModel) -> list[tuple[int, Attention]]:
    """List the cross-attentions by their number among all attentions, which the file's names are made of."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return [(n, unet.get_submodule(name)) for n, name in enumerate(names) if name.endswith("attn2")]


class AdapterStage:
    """Scenes from their caption, or none, and their own CLIP embedding."""

    name = "ip_adapter"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        clip: CLIPModel,
        draw: PairDraw,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.draw, self.batch = draw, draw.batch
        self.device, self.dtype = device, dtype
        self.clip = clip.to(device).eval().requires_grad_(False)
        self.alphas = new_scheduler().alphas_cumprod.to(device)
        self.text_encoder = text_encoder.to(device).eval().requires_grad_(False)
        self.trained: nn.Module = unet.to(device)
        self._empty = self._context(tokenize(draw.tokenizer, [""]).to(device))
        scenes = [validation_scene(n)[0] for n in range(_EVALUATED)]
        latents = draw.components.encode(to_pixels(render_batch(scenes))).to(device)
        self._evaluated = latents, self._embed(torch.from_numpy(clip_views(scenes)).to(device))

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the squared error of the predicted velocity, weighted by level."""
        *latents, ids, views = batch
        before, after, edited, plain = (each.float() for each in latents)
        timesteps = spread_timesteps(len(ids), self.device)
        timesteps[: len(before)].clamp_(min=FIRST_TIMESTEP)
        seen = torch.cat([mix(before, after, timesteps[: len(before)]), plain])
        wanted = torch.cat([after, plain])
        weights = torch.cat([edited, torch.ones_like(plain[:, :1])])
        dropped, hidden = (torch.rand(len(ids), device=self.device) < p for p in (DROPPED_PROMPTS, DROPPED_PICTURES))
        # Where nothing tells otherwise what is seen stays.
        wanted = torch.where((dropped & hidden).view(-1, 1, 1, 1), seen, wanted)
        context = torch.where(dropped.view(-1, 1, 1), self._empty, self._context(ids.long()))
        images = self._embed(views) * ~hidden.view(-1, 1)
        errors = self._errors(self.trained, seen, wanted, context, images, timesteps, weights)
        return (errors * level_weights(self.alphas[timesteps])).mean()

    def evaluate(self, trained: nn.Module) -> dict[str, float]:
        """Return the error on validation scenes without captions, with their own picture's embedding, another's, and none."""
        latents, images = self._evaluated
        context = self._empty.expand(len(latents), -1, -1)
        timesteps = torch.arange(len(images), device=self.device) * 1000 // len(images)
        figures = {}
        for name, shown in (
            ("error", images),
            ("error_of_wrong_pictures", images.roll(1, dims=0)),
            ("error_of_none", 0 * images),
        ):
            torch.manual_seed(0)
            figures[name] = self._errors(trained, latents, latents, context, shown, timesteps, 1.0).mean().item()
        return figures

    def weights(self, trained: nn.Module) -> Mapping[str, Tensor]:
        """Return the IP-Adapter's weights alone."""
        return adapter_weights(trained)

    @torch.no_grad()
    def _context(self, ids: Tensor) -> Tensor:
        context: Tensor = self.text_encoder(ids)[0]
        return context

    @torch.no_grad()
    def _embed(self, views: Tensor) -> Tensor:
        images: Tensor = self.clip.visual_projection(self.clip.vision_model(pixel_values=clip_pixels(views)).pooler_output)
        return images

    def _errors(
        self,
        unet: nn.Module,
        seen: Tensor,
        wanted: Tensor,
        context: Tensor,
        images: Tensor,
        timesteps: Tensor,
        weights: Tensor | float,
    ) -> Tensor:
        noise, alphas = torch.randn_like(seen), self.alphas[timesteps]
        noisy = add_noise(seen, noise, alphas)
        shown = {"image_embeds": [images[:, None]]}
        with arithmetic(self.device, self.dtype), attention_kernels(self.device):
            predicted = unet(noisy, timesteps, context, added_cond_kwargs=shown, return_dict=False)[0]
        errors: Tensor = (predicted.float() - velocity_to(noisy, wanted, alphas)).square() * weights
        return errors.mean(dim=(1, 2, 3))
