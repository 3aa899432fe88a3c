"""The stage that distils the UNet into one that tells the clean picture from any level: a latent consistency model (arXiv 2310.04378)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from vimaedit.miniature.family import CANVAS_SIZE, LATENT_CHANNELS, VAE_FACTOR, new_scheduler
from vimaedit.miniature.training.corrections import PairDraw, mix
from vimaedit.miniature.training.data import tokenize, validation_scene
from vimaedit.miniature.training.denoiser import add_noise, arithmetic, use_plain_attention

BATCH = 20
CORRECTIONS = 0.5  # of a batch's pictures, as in the teacher's training
GUIDANCE = 3.0  # of the teacher: the student has it built in
LEVELS = 50  # between which the teacher steps, as in few-step sampling
FOLLOWED = 0.98  # share of its mean that each step leaves the network which the student has to agree with
HUBER = 0.001 * 2**0.5  # the loss is linear beyond about it, per number
_EVALUATED = 32
_GRID = tuple(range(981, 0, -20))  # of the teacher's pictures


class ConsistencyStage:
    """A student of the trained UNet, whose prediction of the clean picture is to be the same one level below."""

    name = "consistency"

    def __init__(
        self,
        student: UNet2DConditionModel,
        teacher: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        draw: PairDraw,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.draw, self.batch = draw, draw.batch
        self.device, self.dtype = device, dtype
        self.alphas = new_scheduler().alphas_cumprod.to(device)
        for unet in (student, teacher):
            use_plain_attention(unet, device)
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        self.text_encoder = text_encoder.to(device).eval().requires_grad_(False)
        self.trained: nn.Module = student.to(device)
        self._followed = copy.deepcopy(student).requires_grad_(False)
        self._empty = self._context(tokenize(draw.tokenizer, [""]).to(device))
        pairs = [validation_scene(n) for n in range(_EVALUATED)]
        self._evaluated = self._context(tokenize(draw.tokenizer, [caption for _, caption in pairs]).to(device))
        side = CANVAS_SIZE // VAE_FACTOR
        self._noise = torch.randn(_EVALUATED, LATENT_CHANNELS, side, side).to(device)
        self._drawn = self._let_teacher_draw()

    def loss(self, *batch: Tensor) -> Tensor:
        """Return how far the student's clean pictures at a level and, after the teacher's step, at the next are apart."""
        before, after, _, plain = (each.float() for each in batch[:-1])
        latents = torch.cat([mix(before, after), plain])
        context = self._context(batch[-1].long())
        spacing = len(self.alphas) // LEVELS
        high = (torch.randint(LEVELS, (len(latents),), device=self.device) + 1) * spacing - 1
        low = high - spacing
        noisy = add_noise(latents, torch.randn_like(latents), self.alphas[high])
        with torch.no_grad():
            below = self._teach(noisy, high, low, context)
            wanted = _clean(below, self._predict(self._followed, below, low.clamp(min=0), context), self._alpha(low))
            wanted = torch.where((low < 0).view(-1, 1, 1, 1), below, wanted)  # below the last level it is clean
        own = _clean(noisy, self._predict(self.trained, noisy, high, context), self._alpha(high))
        self._follow()
        return ((own - wanted).square() + HUBER**2).sqrt().mean() - HUBER

    def evaluate(self, trained: nn.Module) -> dict[str, float]:
        """Return how far the student's pictures of one step are from the teacher's of 50, from the same noise (PSNR of latents)."""
        context = self._evaluated
        first = torch.full((len(context),), _GRID[0], device=self.device)
        clean = _clean(self._noise, self._predict(trained, self._noise, first, context), self._alpha(first))
        return {"psnr_of_one_step": float(-10 * (clean - self._drawn).square().mean().log10())}

    def weights(self, trained: nn.Module) -> Mapping[str, Tensor]:
        """Return all weights."""
        return trained.state_dict()

    @torch.no_grad()
    def _let_teacher_draw(self) -> Tensor:
        """Return what the teacher draws for the evaluated captions in 50 steps."""
        context, drawn = self._evaluated, self._noise
        for t, t_next in zip(_GRID, [*_GRID[1:], -1], strict=True):
            times = torch.full((len(context),), t, device=self.device)
            drawn = self._teach(drawn, times, torch.full_like(times, t_next), context)
        return drawn

    def _teach(self, noisy: Tensor, high: Tensor, low: Tensor, context: Tensor) -> Tensor:
        """Take the teacher's guided DDIM step from one level to another."""
        contexts = torch.cat([context, self._empty.expand(len(context), -1, -1)])
        both = self._predict(self.teacher, noisy.repeat(2, 1, 1, 1), high.repeat(2), contexts).chunk(2)
        velocity = both[1] + GUIDANCE * (both[0] - both[1])
        alpha = self._alpha(high)
        return add_noise(_clean(noisy, velocity, alpha), add_noise(velocity, noisy, alpha), self._alpha(low))

    def _alpha(self, timesteps: Tensor) -> Tensor:
        """Return the cumulative alpha of each timestep, 1 below the first."""
        return torch.where(timesteps < 0, torch.ones((), device=self.device), self.alphas[timesteps.clamp(min=0)])

    @torch.no_grad()
    def _context(self, ids: Tensor) -> Tensor:
        context: Tensor = self.text_encoder(ids)[0]
        return context

    @torch.no_grad()
    def _follow(self) -> None:
        for own, new in zip(self._followed.parameters(), self.trained.parameters(), strict=True):
            own.lerp_(new, 1 - FOLLOWED)

    def _predict(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        with arithmetic(self.device, self.dtype):
            predicted: Tensor = unet(noisy, timesteps, context, return_dict=False)[0]
        return predicted.float()


def _clean(noisy: Tensor, velocity: Tensor, alphas: Tensor) -> Tensor:
    """Return the clean picture that a velocity implies: sqrt(a) z - sqrt(1 - a) v."""
    signal, spread = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
    return signal * noisy - spread * velocity
