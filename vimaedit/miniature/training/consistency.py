"""The stage that distils the UNet into one that tells the clean picture from any level: a latent consistency model (arXiv 2310.04378)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vimaedit.miniature.family import new_scheduler
from vimaedit.miniature.training.components import Components
from vimaedit.miniature.training.corrections import encode_corrections, mix, training_correction
from vimaedit.miniature.training.data import (
    load_tokenizer,
    render_batch,
    to_pixels,
    tokenize,
    training_scene,
    validation_scene,
)
from vimaedit.miniature.training.denoiser import Denoiser, add_noise, use_plain_attention
from vimaedit.scenes.scenes import Scene

BATCH_SIZE = 20
CORRECTIONS = 10  # of a batch's pictures, as in the teacher's training
GUIDANCE = 3.0  # of the teacher: the student has it built in
LEVELS = 50  # between which the teacher steps, as in few-step sampling
FOLLOWED = 0.98  # share of its mean that each step leaves the network which the student has to agree with
HUBER = 0.001 * 2**0.5  # the loss is linear beyond about it, per number
_EVALUATED = 32
_GRID = tuple(range(981, 0, -20))  # of the teacher's pictures


class ConsistencyStage:
    """A student of the trained UNet, whose prediction of the clean picture is to be the same one level below."""

    name = "consistency"

    def __init__(self, components: Components, denoiser: Denoiser, device: torch.device) -> None:
        self.components, self.device = components, device
        self.tokenizer = load_tokenizer()
        self.alphas = new_scheduler().alphas_cumprod.to(device)
        denoiser.to(device).eval().requires_grad_(False)
        use_plain_attention(denoiser.unet, device)
        self.teacher, self.text_encoder = denoiser.unet, denoiser.text_encoder
        self.trained: nn.Module = copy.deepcopy(denoiser.unet).requires_grad_(True)
        self._followed = copy.deepcopy(denoiser.unet)
        self._evaluated = self._prepare([validation_scene(n) for n in range(_EVALUATED)])
        self._noise = torch.randn(self._evaluated[0].shape).to(device)
        self._drawn = self._draw()

    def loss(self, step: int) -> Tensor:
        """Return how far the student's clean pictures at a level and, after the teacher's step, at the next are apart."""
        first = step * BATCH_SIZE
        corrections = [training_correction(self.name, first + n) for n in range(CORRECTIONS)]
        scenes = [training_scene(self.name, first + n) for n in range(CORRECTIONS, BATCH_SIZE)]
        latents, context, empty = self._prepare([(each.source, each.target_prompt) for each in corrections] + scenes)
        before, after, _ = encode_corrections(self.components, corrections)
        latents[:CORRECTIONS] = mix(before, after).to(self.device)
        spacing = len(self.alphas) // LEVELS
        high = ((torch.randint(LEVELS, (BATCH_SIZE,)) + 1) * spacing - 1).to(self.device)
        low = high - spacing
        noisy = add_noise(latents, torch.randn(latents.shape).to(self.device), self.alphas[high])
        with torch.no_grad():
            below = self._teach(noisy, high, low, context, empty)
            wanted = _clean(below, _predict(self._followed, below, low.clamp(min=0), context), self._alpha(low))
            wanted = torch.where((low < 0).view(-1, 1, 1, 1), below, wanted)  # below the last level it is clean
        own = _clean(noisy, _predict(self.trained, noisy, high, context), self._alpha(high))
        self._follow()
        return ((own - wanted).square() + HUBER**2).sqrt().mean() - HUBER

    def evaluate(self, trained: nn.Module) -> dict[str, float]:
        """Return how far the student's pictures of one step are from the teacher's of 50, from the same noise (PSNR of latents)."""
        latents, context, _ = self._evaluated
        first = torch.full((len(latents),), _GRID[0], device=self.device)
        clean = _clean(self._noise, _predict(trained, self._noise, first, context), self._alpha(first))
        return {"psnr_of_one_step": float(-10 * (clean - self._drawn).square().mean().log10())}

    @torch.no_grad()
    def _draw(self) -> Tensor:
        """Return what the teacher draws for the evaluated captions in 50 steps."""
        latents, context, empty = self._evaluated
        drawn = self._noise
        for t, t_next in zip(_GRID, [*_GRID[1:], -1], strict=True):
            times = torch.full((len(latents),), t, device=self.device)
            drawn = self._teach(drawn, times, torch.full_like(times, t_next), context, empty)
        return drawn

    def _teach(self, noisy: Tensor, high: Tensor, low: Tensor, context: Tensor, empty: Tensor) -> Tensor:
        """Take the teacher's guided DDIM step from one level to another."""
        both = _predict(self.teacher, noisy.repeat(2, 1, 1, 1), high.repeat(2), torch.cat([context, empty])).chunk(2)
        velocity = both[1] + GUIDANCE * (both[0] - both[1])
        alpha = self._alpha(high)
        return add_noise(_clean(noisy, velocity, alpha), add_noise(velocity, noisy, alpha), self._alpha(low))

    def _alpha(self, timesteps: Tensor) -> Tensor:
        """Return the cumulative alpha of each timestep, 1 below the first."""
        return torch.where(timesteps < 0, torch.ones((), device=self.device), self.alphas[timesteps.clamp(min=0)])

    @torch.no_grad()
    def _prepare(self, pairs: Sequence[tuple[Scene, str]]) -> tuple[Tensor, Tensor, Tensor]:
        latents = self.components.encode(to_pixels(render_batch([scene for scene, _ in pairs])))
        ids = tokenize(self.tokenizer, [*(caption for _, caption in pairs), ""])
        context = self.text_encoder(ids.to(self.device))[0]
        return latents.to(self.device), context[:-1], context[-1:].expand(len(pairs), -1, -1)

    @torch.no_grad()
    def _follow(self) -> None:
        for own, new in zip(self._followed.parameters(), self.trained.parameters(), strict=True):
            own.lerp_(new, 1 - FOLLOWED)


def _predict(unet: nn.Module, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
    with torch.autocast(noisy.device.type, torch.bfloat16):
        predicted: Tensor = unet(noisy, timesteps, context, return_dict=False)[0]
    return predicted.float()


def _clean(noisy: Tensor, velocity: Tensor, alphas: Tensor) -> Tensor:
    """Return the clean picture that a velocity implies: sqrt(a) z - sqrt(1 - a) v."""
    signal, spread = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
    return signal * noisy - spread * velocity
