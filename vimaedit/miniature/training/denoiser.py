"""The stage that trains the UNet, and its text encoder with it, to predict the velocity sqrt(a) noise - sqrt(1 - a) x0."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vimaedit.miniature.family import UNET_CHANNELS, new_scheduler, new_text_encoder, new_unet
from vimaedit.miniature.training.corrections import FIRST_TIMESTEP, PairDraw, encode_corrections, mix, validation_correction
from vimaedit.miniature.training.data import render_batch, to_pixels, tokenize, validation_scene

BATCH = 20  # small: many steps count for more here than smooth ones
DROPPED_PROMPTS = 0.1  # for classifier-free guidance
CORRECTIONS = 0.65  # of a batch's pictures: their captions overrule what is seen
TIMESTEP_LOGIT_MEAN, TIMESTEP_LOGIT_SPREAD = 0.5, 1.2  # of t / 1000
MAX_SNR = 5.0  # levels of less noise weigh less (arXiv 2303.09556)
_EVALUATED = 128


class Denoiser(nn.Module):
    """UNet and text encoder together."""

    def __init__(self, channels: Sequence[int] = UNET_CHANNELS) -> None:
        super().__init__()
        self.unet = new_unet(channels)
        self.text_encoder = new_text_encoder()

    def forward(self, noisy_BChw: Tensor, timesteps_B: Tensor, ids_BT: Tensor) -> Tensor:
        """Predict the velocity, (B, C, h, w)."""
        context = self.text_encoder(ids_BT)[0]
        predicted: Tensor = self.unet(noisy_BChw, timesteps_B, encoder_hidden_states=context, return_dict=False)[0]
        return predicted


class DenoiserStage:
    """Text to image on scenes of the training split, the prompt dropped at times."""

    name = "denoiser"

    def __init__(self, denoiser: Denoiser, draw: PairDraw, device: torch.device, dtype: torch.dtype) -> None:
        use_plain_attention(denoiser.unet, device)
        self.trained: nn.Module = denoiser.to(device)
        self.draw, self.batch = draw, draw.batch
        self.device, self.dtype = device, dtype
        self.alphas = new_scheduler().alphas_cumprod.to(device)
        self._empty = tokenize(draw.tokenizer, [""]).to(device)
        pairs = [validation_scene(n) for n in range(_EVALUATED)]
        latents = draw.components.encode(to_pixels(render_batch([scene for scene, _ in pairs])))
        self._evaluated = latents.to(device), tokenize(draw.tokenizer, [caption for _, caption in pairs]).to(device)
        corrections = [validation_correction(n) for n in range(_EVALUATED)]
        ids = tokenize(draw.tokenizer, [each.target_prompt for each in corrections])
        self._corrected = tuple(each.to(device) for each in (*encode_corrections(draw.components, corrections), ids))

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the squared error of the predicted velocity, weighted by level and, in corrections, by place."""
        *latents, ids = batch
        before, after, edited, plain = (each.float() for each in latents)
        timesteps = spread_timesteps(len(ids), self.device)
        timesteps[: len(before)].clamp_(min=FIRST_TIMESTEP)
        seen = torch.cat([mix(before, after, timesteps[: len(before)]), plain])
        wanted = torch.cat([after, plain])
        weights = torch.cat([edited, torch.ones_like(plain[:, :1])])
        dropped = torch.rand(len(ids), device=self.device) < DROPPED_PROMPTS
        # Without a caption what is seen stays.
        wanted = torch.where(dropped.view(-1, 1, 1, 1), seen, wanted)
        ids = torch.where(dropped[:, None], self._empty, ids.long())
        errors = self._errors(self.trained, seen, wanted, ids, timesteps, weights)
        return (errors * level_weights(self.alphas[timesteps])).mean()

    def weights(self, trained: nn.Module) -> Mapping[str, Tensor]:
        """Return all weights."""
        return trained.state_dict()

    def evaluate(self, trained: nn.Module) -> dict[str, float]:
        """Return errors on validation scenes, at levels spread evenly, with their captions and with those of others.

        `uncorrected`: what is left of the squared difference between what is seen and what a correction's caption tells, where
        its edit is; 1 for a UNet that believes what it sees, 0 for one that believes the caption.
        """
        latents, ids = self._evaluated
        timesteps = (torch.arange(len(ids), device=self.device) * 1000 // len(ids)).flip(0)
        order = torch.randperm(len(ids)).to(self.device)
        latents, ids = latents[order], ids[order]
        figures = {}
        for name, shown in (("own", ids), ("others", ids.roll(1, dims=0))):
            torch.manual_seed(0)  # the same noise
            figures[name] = self._errors(trained, latents, latents, shown, timesteps, 1.0)
        noisy = timesteps >= 500  # where the caption has to say what is seen
        return {
            "error": figures["own"].mean().item(),
            "noisy_half": figures["own"][noisy].mean().item(),
            "noisy_half_of_wrong_captions": figures["others"][noisy].mean().item(),
            "uncorrected": self._uncorrected(trained),
        }

    def _uncorrected(self, trained: nn.Module) -> float:
        seen, wanted, weights, ids = self._corrected
        steps = torch.arange(len(ids), device=self.device)
        timesteps = FIRST_TIMESTEP + steps * (1000 - FIRST_TIMESTEP) // len(ids)
        touched = (weights > 1).float()
        errors = self._errors(trained, seen, wanted, ids, timesteps, touched) * (
            1 - self.alphas[timesteps]
        )  # of the clean picture
        return float(errors.sum() / ((seen - wanted).square() * touched).mean(dim=(1, 2, 3)).sum())

    def _errors(
        self, denoiser: nn.Module, seen: Tensor, wanted: Tensor, ids: Tensor, timesteps: Tensor, weights: Tensor | float
    ) -> Tensor:
        """Return each picture's weighted squared error of the velocity that leads from what is seen, noised, to what is wanted."""
        noise, alphas = torch.randn_like(seen), self.alphas[timesteps]
        noisy = add_noise(seen, noise, alphas)
        with arithmetic(self.device, self.dtype), attention_kernels(self.device):
            predicted = denoiser(noisy, timesteps, ids)
        errors: Tensor = (predicted.float() - velocity_to(noisy, wanted, alphas)).square() * weights
        return errors.mean(dim=(1, 2, 3))


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Resolve `auto`: bfloat16 where a convolution takes less time in it. Processors that have to emulate it take ten times as long."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    values, kernel = torch.randn(8, 48, 16, 16, device=device), torch.randn(48, 48, 3, 3, device=device)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        with arithmetic(device, dtype):
            F.conv2d(values, kernel)
            started = time.perf_counter()
            for _ in range(5):
                float(F.conv2d(values, kernel).flatten()[0])  # waits for the device
            seconds[dtype] = time.perf_counter() - started
    return min(seconds, key=lambda dtype: seconds[dtype])


def arithmetic(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Choose the precision in which networks compute; their weights stay in float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def use_plain_attention(unet: UNet2DConditionModel, device: torch.device) -> None:
    """Let a UNet that trains on the CPU attend by plain matrix products: its backward pass is 1.5 times as fast as the fused one."""
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())


def attention_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Choose how attention that stays fused is computed, for the same reason."""
    kernels: AbstractContextManager[None] = nullcontext() if device.type != "cpu" else sdpa_kernel(SDPBackend.MATH)
    return kernels


def spread_timesteps(count: int, device: torch.device) -> Tensor:
    """Draw one timestep from each of `count` equal parts of a logit-normal distribution, in random order.

    It favours the levels between 500 and 900, which decide what is seen and where (arXiv 2403.03206, section 3.1).
    """
    parts = (torch.randperm(count, device=device) + torch.rand(count, device=device)) / count
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


def velocity_to(noisy_BChw: Tensor, clean_BChw: Tensor, alphas_B: Tensor) -> Tensor:
    """Return the velocity that leads from a noisy picture to a clean one, whichever was noised: (sqrt(a) z - x0) / sqrt(1 - a).

    For the clean picture that was noised it is sqrt(a) noise - sqrt(1 - a) x0 (arXiv 2202.00512).
    """
    signal, spread = alphas_B.sqrt().view(-1, 1, 1, 1), (1 - alphas_B).sqrt().view(-1, 1, 1, 1)
    return (signal * noisy_BChw - clean_BChw) / spread
