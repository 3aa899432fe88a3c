"""The stage that trains the autoencoder's decoder against its fixed encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimaedit.miniature.training.components import Components
from vimaedit.miniature.training.data import Batch, render_batch, to_pixels, training_scene, validation_scene
from vimaedit.miniature.training.denoiser import arithmetic

BATCH = 8  # small: many steps count for more here than smooth ones
LATENT_NOISE = 0.02  # added to the latents: edited ones are never quite those of a picture
_EVALUATED = 64


@dataclass(frozen=True)
class PictureDraw:
    """Batches of drawn pictures alone, (B, 128, 128, 3) uint8."""

    batch: int

    def __call__(self, first: int) -> Batch:
        """Draw the batch that begins with scene number `first`."""
        return (render_batch([training_scene(DecoderStage.name, first + n)[0] for n in range(self.batch)]),)


class DecoderStage:
    """Pictures from latents."""

    name = "decoder"

    def __init__(
        self, decoder: nn.Module, components: Components, draw: PictureDraw, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.trained = decoder.to(device)
        self.draw, self.batch = draw, draw.batch
        self.components, self.device, self.dtype = components.to(device), device, dtype
        self._evaluated = to_pixels(render_batch([validation_scene(n)[0] for n in range(_EVALUATED)]))

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the absolute and the squared error of decoded pictures."""
        pixels = to_pixels(batch[0])
        latents = self.components.encode(pixels)
        decoded = self._decode(self.trained, latents + LATENT_NOISE * torch.randn_like(latents))
        return F.l1_loss(decoded, pixels) + 2 * F.mse_loss(decoded, pixels)

    def evaluate(self, trained: nn.Module) -> dict[str, float]:
        """Return the PSNR of a round trip, mean over validation scenes, in dB."""
        parts = [part.to(self.device) for part in self._evaluated.split(16)]
        decoded = [self._decode(trained, self.components.encode(part)) for part in parts]
        errors = [
            ((own.clamp(-1, 1) - part) / 2).square().mean(dim=(1, 2, 3)) for own, part in zip(decoded, parts, strict=True)
        ]
        return {"psnr": float((-10 * torch.cat(errors).log10()).mean())}

    def weights(self, trained: nn.Module) -> Mapping[str, Tensor]:
        """Return all weights."""
        return trained.state_dict()

    def _decode(self, decoder: nn.Module, latents: Tensor) -> Tensor:
        with arithmetic(self.device, self.dtype):
            decoded: Tensor = decoder(latents)
        return decoded.float()
