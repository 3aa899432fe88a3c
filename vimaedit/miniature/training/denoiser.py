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
from vimaedit.miniature.training.components import Components
from vimaedit.miniature.training.corrections import (
    FIRST_TIMESTEP,
    encode_corrections,
    mix,
    training_correction,
    validation_correction,
)
from vimaedit.miniature.training.data import (
    load_tokenizer,
    render_batch,
    to_pixels,
    tokenize,
    training_scene,
    validation_scene,
)
from vimaedit.scenes.scenes import Scene

BATCH_SIZE = 20  # small: many steps count for more here than smooth ones
DROPPED_PROMPTS = 0.1  # for classifier-free guidance
CORRECTIONS = 8  # of a batch's pictures: their captions overrule what is seen
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
        corrections = [validation_correction(n) for n in range(_EVALUATED)]
        ids = tokenize(self.tokenizer, [each.target_prompt for each in corrections])
        self._corrected = (*encode_corrections(components, corrections), ids)

    def loss(self, step: int) -> Tensor:
        """Return the squared error of the predicted velocity, weighted by level and, in corrections, by place."""
        numbers = range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
        corrections = [training_correction(self.name, number) for number in numbers[:CORRECTIONS]]
        pairs = [training_scene(self.name, number) for number in numbers[CORRECTIONS:]]
        captions = [each.target_prompt for each in corrections] + [caption for _, caption in pairs]
        before, after, edited = encode_corrections(self.components, corrections)
        plain = self.components.encode(to_pixels(render_batch([scene for scene, _ in pairs])))
        seen, wanted = torch.cat([mix(before, after), plain]), torch.cat([after, plain])
        weights = torch.cat([edited, torch.ones_like(plain[:, :1])])
        dropped = torch.rand(BATCH_SIZE) < DROPPED_PROMPTS
        # Without a caption what is seen stays.
        wanted = torch.where(dropped.view(-1, 1, 1, 1), seen, wanted)
        captions = ["" if drop else caption for caption, drop in zip(captions, dropped.tolist(), strict=True)]
        timesteps = spread_timesteps(BATCH_SIZE)
        timesteps[:CORRECTIONS].clamp_(min=FIRST_TIMESTEP)
        errors = self._errors(self.trained, seen, wanted, tokenize(self.tokenizer, captions), timesteps, weights)
        return (errors * level_weights(self.alphas[timesteps]).to(self.device)).mean()

    def evaluate(self, trained: nn.Module) -> dict[str, float]:
        """Return errors on validation scenes, at levels spread evenly, with their captions and with those of others.

        `uncorrected`: what is left of the squared difference between what is seen and what a correction's caption tells, where
        its edit is; 1 for a UNet that believes what it sees, 0 for one that believes the caption.
        """
        latents, ids = self._evaluated
        timesteps = (torch.arange(len(ids)) * 1000 // len(ids)).flip(0)
        order = torch.randperm(len(ids))
        latents, ids = latents[order], ids[order]
        state = torch.random.get_rng_state()
        own = self._errors(trained, latents, latents, ids, timesteps, 1.0)
        torch.random.set_rng_state(state)
        others = self._errors(trained, latents, latents, ids.roll(1, dims=0), timesteps, 1.0)
        noisy = (timesteps >= 500).to(self.device)  # where the caption has to say what is seen
        return {
            "error": own.mean().item(),
            "noisy_half": own[noisy].mean().item(),
            "noisy_half_of_wrong_captions": others[noisy].mean().item(),
            "uncorrected": self._uncorrected(trained),
        }

    def _uncorrected(self, trained: nn.Module) -> float:
        seen, wanted, weights, ids = self._corrected
        timesteps = FIRST_TIMESTEP + torch.arange(len(ids)) * (1000 - FIRST_TIMESTEP) // len(ids)
        alphas = self.alphas[timesteps].view(-1, 1, 1, 1)
        touched = (weights > 1).float()
        errors = self._errors(trained, seen, wanted, ids, timesteps, touched).cpu() * (
            1 - alphas.flatten()
        )  # of the clean picture
        return float(errors.sum() / ((seen - wanted).square() * touched).mean(dim=(1, 2, 3)).sum())

    def _prepare(self, scenes: Sequence[Scene], captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return latents (B, C, h, w) and token ids (B, T)."""
        return self.components.encode(to_pixels(render_batch(scenes))), tokenize(self.tokenizer, captions)

    def _errors(
        self, denoiser: nn.Module, seen: Tensor, wanted: Tensor, ids: Tensor, timesteps: Tensor, weights: Tensor | float
    ) -> Tensor:
        """Return each picture's weighted squared error of the velocity that leads from what is seen, noised, to what is wanted."""
        noise, alphas = torch.randn_like(seen), self.alphas[timesteps]
        noisy = add_noise(seen, noise, alphas)
        goal = velocity_to(noisy, wanted, alphas)
        with torch.autocast(self.device.type, torch.bfloat16), attention_kernels(self.device):
            predicted = denoiser(noisy.to(self.device), timesteps.to(self.device), ids.to(self.device))
        errors: Tensor = (predicted.float() - goal.to(self.device)).square() * torch.as_tensor(weights).to(self.device)
        return errors.mean(dim=(1, 2, 3))


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


def velocity_to(noisy_BChw: Tensor, clean_BChw: Tensor, alphas_B: Tensor) -> Tensor:
    """Return the velocity that leads from a noisy picture to a clean one, whichever was noised: (sqrt(a) z - x0) / sqrt(1 - a)."""
    signal, spread = alphas_B.sqrt().view(-1, 1, 1, 1), (1 - alphas_B).sqrt().view(-1, 1, 1, 1)
    return (signal * noisy_BChw - clean_BChw) / spread
