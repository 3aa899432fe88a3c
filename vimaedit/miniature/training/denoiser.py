"""The stage that trains the UNet, and its text encoder with it, to predict the velocity sqrt(a) noise - sqrt(1 - a) x0."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vimaedit.miniature.family import new_scheduler, new_text_encoder, new_unet
from vimaedit.miniature.scenes import Scene
from vimaedit.miniature.training.components import Components
from vimaedit.miniature.training.data import (
    load_tokenizer,
    render_batch,
    to_pixels,
    tokenize,
    training_close_up,
    training_scene,
    validation_scene,
)

BATCH_SIZE = 20  # small: many steps count for more here than smooth ones
DROPPED_PROMPTS = 0.1  # for classifier-free guidance
CLOSE_UPS = 12  # of a batch's pictures, in the first batches; none later
CLOSE_UP_BATCHES = 75_000
TIMESTEP_LOGIT_MEAN, TIMESTEP_LOGIT_SPREAD = 0.5, 1.2  # of t / 1000
MAX_SNR = 5.0  # levels of less noise weigh less (arXiv 2303.09556)
_EVALUATED = 128


class Denoiser(nn.Module):
    """UNet and text encoder together."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = new_unet()
        self.text_encoder = new_text_encoder()

    def forward(self, noisy_BChw: Tensor, timesteps_B: Tensor, ids_BT: Tensor) -> Tensor:
        """Predict the velocity, (B, C, h, w)."""
        context = self.text_encoder(ids_BT)[0]
        predicted: Tensor = self.unet(noisy_BChw, timesteps_B, encoder_hidden_states=context, return_dict=False)[0]
        return predicted


class DenoiserStage:
    """Text to image on scenes of the training split, the prompt dropped at times."""

    name = "denoiser"

    def __init__(self, components: Components, device: torch.device) -> None:
        denoiser = Denoiser().to(device)
        use_plain_attention(denoiser.unet, device)
        self.trained: nn.Module = denoiser
        self.components, self.device = components, device
        self.tokenizer = load_tokenizer()
        self.alphas = new_scheduler().alphas_cumprod
        pairs = [validation_scene(n) for n in range(_EVALUATED)]
        self._evaluated = self._prepare([scene for scene, _ in pairs], [caption for _, caption in pairs])

    def loss(self, step: int) -> Tensor:
        """Return the squared error of the predicted velocity, weighted by level."""
        close_ups = CLOSE_UPS if step < CLOSE_UP_BATCHES else 0
        pairs = [
            (training_close_up if n < close_ups else training_scene)(self.name, step * BATCH_SIZE + n)
            for n in range(BATCH_SIZE)
        ]
        dropped = (torch.rand(BATCH_SIZE) < DROPPED_PROMPTS).tolist()
        captions = ["" if drop else caption for (_, caption), drop in zip(pairs, dropped, strict=True)]
        latents, ids = self._prepare([scene for scene, _ in pairs], captions)
        timesteps = spread_timesteps(BATCH_SIZE)
        errors = self._errors(self.trained, latents, ids, timesteps)
        return (errors * level_weights(self.alphas[timesteps]).to(self.device)).mean()

    def evaluate(self, trained: nn.Module) -> dict[str, float]:
        """Return the error on validation scenes, at levels spread evenly, with their captions and with those of others."""
        latents, ids = self._evaluated
        timesteps = (torch.arange(len(ids)) * 1000 // len(ids)).flip(0)
        order = torch.randperm(len(ids))
        latents, ids = latents[order], ids[order]
        state = torch.random.get_rng_state()
        own = self._errors(trained, latents, ids, timesteps)
        torch.random.set_rng_state(state)
        others = self._errors(trained, latents, ids.roll(1, dims=0), timesteps)
        noisy = (timesteps >= 500).to(self.device)  # where the caption has to say what is seen
        return {
            "error": own.mean().item(),
            "noisy_half": own[noisy].mean().item(),
            "noisy_half_of_wrong_captions": others[noisy].mean().item(),
        }

    def _prepare(self, scenes: Sequence[Scene], captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return latents (B, C, h, w) and token ids (B, T)."""
        return self.components.encode(to_pixels(render_batch(scenes))), tokenize(self.tokenizer, captions)

    def _errors(self, denoiser: nn.Module, latents: Tensor, ids: Tensor, timesteps: Tensor) -> Tensor:
        noise, alphas = torch.randn_like(latents), self.alphas[timesteps]
        noisy, wanted = add_noise(latents, noise, alphas), velocity(latents, noise, alphas)
        with torch.autocast(self.device.type, torch.bfloat16), attention_kernels(self.device):
            noisy, timesteps = noisy.to(self.device), timesteps.to(self.device)
            predicted = denoiser(noisy, timesteps, ids.to(self.device))
        errors: Tensor = (predicted.float() - wanted.to(self.device)).square().mean(dim=(1, 2, 3))
        return errors


def use_plain_attention(unet: UNet2DConditionModel, device: torch.device) -> None:
    """Let a UNet that trains on the CPU attend by plain matrix products: its backward pass is 1.5 times as fast as the fused one."""
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())


def attention_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Choose how attention that stays fused is computed, for the same reason."""
    kernels: AbstractContextManager[None] = nullcontext() if device.type != "cpu" else sdpa_kernel(SDPBackend.MATH)
    return kernels


def spread_timesteps(count: int) -> Tensor:
    """Draw one timestep from each of `count` equal parts of a logit-normal distribution, in random order.

    It favours the levels between 500 and 900, which decide what is seen and where (arXiv 2403.03206, section 3.1).
    """
    parts = (torch.randperm(count) + torch.rand(count)) / count
    normal = torch.special.ndtri(parts.clamp(1e-4, 1 - 1e-4))
    return (1000 * torch.sigmoid(TIMESTEP_LOGIT_MEAN + TIMESTEP_LOGIT_SPREAD * normal)).long().clamp(max=999)


def level_weights(alphas: Tensor) -> Tensor:
    """Weigh the error of the velocity: that of the clean picture by min(SNR, 5) + 1, so 1 up to there."""
    snr = alphas / (1 - alphas)
    return (snr.clamp(max=MAX_SNR) + 1) / (snr + 1)


def add_noise(latents_BChw: Tensor, noise_BChw: Tensor, alphas_B: Tensor) -> Tensor:
    """Return sqrt(a) x0 + sqrt(1 - a) noise."""
    signal, spread = alphas_B.sqrt().view(-1, 1, 1, 1), (1 - alphas_B).sqrt().view(-1, 1, 1, 1)
    return signal * latents_BChw + spread * noise_BChw


def velocity(latents_BChw: Tensor, noise_BChw: Tensor, alphas_B: Tensor) -> Tensor:
    """Return sqrt(a) noise - sqrt(1 - a) x0 (arXiv 2202.00512)."""
    signal, spread = alphas_B.sqrt().view(-1, 1, 1, 1), (1 - alphas_B).sqrt().view(-1, 1, 1, 1)
    return signal * noise_BChw - spread * latents_BChw
