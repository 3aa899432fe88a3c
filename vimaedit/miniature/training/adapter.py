"""The stage that trains the IP-Adapter: keys and values for four image tokens beside the text, the rest of the UNet held fixed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPModel

from vimaedit.miniature.family import CONTEXT_SIZE, EMBEDDING_SIZE, IMAGE_TOKENS, new_scheduler
from vimaedit.miniature.training.components import Components
from vimaedit.miniature.training.contrastive import clip_pixels
from vimaedit.miniature.training.corrections import FIRST_TIMESTEP, encode_corrections, mix, training_correction
from vimaedit.miniature.training.data import (
    load_tokenizer,
    render_batch,
    to_pixels,
    tokenize,
    training_scene,
    validation_scene,
)
from vimaedit.miniature.training.denoiser import (
    Denoiser,
    add_noise,
    attention_kernels,
    level_weights,
    spread_timesteps,
    use_plain_attention,
    velocity_to,
)
from vimaedit.scenes.scenes import Scene

BATCH_SIZE = 20
CORRECTIONS = 10  # of a batch's pictures, as in the UNet's training: their embedding is that of what is wanted
DROPPED_PROMPTS = 0.4  # the picture alone has to be able to steer
DROPPED_PICTURES = 0.1
_EVALUATED = 128


def adapt(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Give a UNet an untrained IP-Adapter, whose keys and values start as the text's; it alone learns."""
    projection = nn.Linear(EMBEDDING_SIZE, IMAGE_TOKENS * CONTEXT_SIZE)
    weights = {}
    for index, attention in _numbered_cross_attentions(unet):
        weights[f"{index}.to_k_ip.weight"] = attention.to_k.weight.clone()
        weights[f"{index}.to_v_ip.weight"] = attention.to_v.weight.clone()
    norm = {"norm.weight": torch.ones(CONTEXT_SIZE), "norm.bias": torch.zeros(CONTEXT_SIZE)}
    image_proj = {"proj.weight": projection.weight.detach(), "proj.bias": projection.bias.detach(), **norm}
    unet.requires_grad_(False)
    unet._load_ip_adapter_weights([{"image_proj": image_proj, "ip_adapter": weights}], low_cpu_mem_usage=False)
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


def _numbered_cross_attentions(unet: UNet2DConditionModel) -> list[tuple[int, Attention]]:
    """List the cross-attentions by their number among all attentions, which the file's names are made of."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return [(n, unet.get_submodule(name)) for n, name in enumerate(names) if name.endswith("attn2")]


class AdapterStage:
    """Scenes from their caption, or none, and their own CLIP embedding."""

    name = "ip_adapter"

    def __init__(self, components: Components, denoiser: Denoiser, clip: CLIPModel, device: torch.device) -> None:
        self.components, self.device = components, device
        self.clip = clip.to(device).eval().requires_grad_(False)
        self.tokenizer = load_tokenizer()
        self.alphas = new_scheduler().alphas_cumprod
        self.text_encoder = denoiser.text_encoder.to(device).eval().requires_grad_(False)
        use_plain_attention(denoiser.unet, device)
        self.trained: nn.Module = adapt(denoiser.unet).to(device)
        self._evaluated = self._prepare([validation_scene(n) for n in range(_EVALUATED)], [False] * _EVALUATED)

    def loss(self, step: int) -> Tensor:
        """Return the squared error of the predicted velocity, weighted by level."""
        first = step * BATCH_SIZE
        corrections = [training_correction(self.name, first + n) for n in range(CORRECTIONS)]
        scenes = [training_scene(self.name, first + n) for n in range(CORRECTIONS, BATCH_SIZE)]
        dropped = torch.rand(BATCH_SIZE) < DROPPED_PROMPTS
        wanted, context, images = self._prepare(
            [(each.target, each.target_prompt) for each in corrections] + scenes, dropped.tolist()
        )
        before, after, edited = encode_corrections(self.components, corrections)
        seen = torch.cat([mix(before, after), wanted[CORRECTIONS:]])
        hidden = torch.rand(BATCH_SIZE) < DROPPED_PICTURES
        images = images * (~hidden).view(-1, 1).to(self.device)
        # Where nothing tells otherwise what is seen stays.
        wanted = torch.where((dropped & hidden).view(-1, 1, 1, 1), seen, wanted)
        weights = torch.cat([edited, torch.ones_like(wanted[CORRECTIONS:, :1])])
        timesteps = spread_timesteps(BATCH_SIZE)
        timesteps[:CORRECTIONS].clamp_(min=FIRST_TIMESTEP)
        errors = self._errors(self.trained, seen, wanted, context, images, timesteps, weights)
        return (errors * level_weights(self.alphas[timesteps]).to(self.device)).mean()

    def evaluate(self, trained: nn.Module) -> dict[str, float]:
        """Return the error on validation scenes without captions, with their own picture's embedding, another's, and none."""
        latents, _, images = self._evaluated
        context = self._contexts([""]).expand(len(latents), -1, -1)
        timesteps = torch.arange(len(images)) * 1000 // len(images)
        figures = {}
        for name, shown in (
            ("error", images),
            ("error_of_wrong_pictures", images.roll(1, dims=0)),
            ("error_of_none", 0 * images),
        ):
            torch.manual_seed(0)
            figures[name] = self._errors(trained, latents, latents, context, shown, timesteps, 1.0).mean().item()
        return figures

    @torch.no_grad()
    def _prepare(self, pairs: Sequence[tuple[Scene, str]], dropped: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
        pictures = render_batch([scene for scene, _ in pairs])
        captions = ["" if drop else caption for (_, caption), drop in zip(pairs, dropped, strict=True)]
        views = clip_pixels(pictures).to(self.device)
        images = self.clip.visual_projection(self.clip.vision_model(pixel_values=views).pooler_output)
        return self.components.encode(to_pixels(pictures)), self._contexts(captions), images

    @torch.no_grad()
    def _contexts(self, captions: Sequence[str]) -> Tensor:
        context: Tensor = self.text_encoder(tokenize(self.tokenizer, captions).to(self.device))[0]
        return context

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
        with torch.autocast(self.device.type, torch.bfloat16), attention_kernels(self.device):
            predicted = unet(
                noisy.to(self.device), timesteps.to(self.device), context, added_cond_kwargs=shown, return_dict=False
            )[0]
        errors: Tensor = (predicted.float() - velocity_to(noisy, wanted, alphas).to(self.device)).square() * torch.as_tensor(
            weights
        ).to(self.device)
        return errors.mean(dim=(1, 2, 3))
