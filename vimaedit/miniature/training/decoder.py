"""The stage that trains the autoencoder's decoder against its fixed encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimaedit.miniature.family import new_autoencoder
from vimaedit.miniature.training.components import Components
from vimaedit.miniature.training.data import render_batch, to_pixels, training_scene, validation_scene

BATCH_SIZE = 8  # small: many steps count for more here than smooth ones
LATENT_NOISE = 0.02  # added to the latents: edited ones are never quite those of a picture
_EVALUATED = 64


class DecoderStage:
    """Pictures from latents."""

    name = "decoder"

    def __init__(self, components: Components, device: torch.device) -> None:
        self.trained: nn.Module = new_autoencoder().decoder.to(device)
        self.components, self.device = components, device
        self._evaluated = to_pixels(render_batch([validation_scene(n)[0] for n in range(_EVALUATED)]))

    def loss(self, step: int) -> Tensor:
        """Return the absolute and the squared error of decoded pictures."""
        scenes = [training_scene(self.name, step * BATCH_SIZE + n)[0] for n in range(BATCH_SIZE)]
        pixels = to_pixels(render_batch(scenes))
        latents = self.components.encode(pixels)
        decoded = self._decode(self.trained, latents + LATENT_NOISE * torch.randn_like(latents))
        pixels = pixels.to(self.device)
        return F.l1_loss(decoded, pixels) + 2 * F.mse_loss(decoded, pixels)

    def evaluate(self, trained: nn.Module) -> dict[str, float]:
        """Return the PSNR of a round trip, mean over validation scenes, in dB."""
        decoded = torch.cat([self._decode(trained, self.components.encode(part)).cpu() for part in self._evaluated.split(16)])
        errors = ((decoded.clamp(-1, 1) - self._evaluated) / 2).square().mean(dim=(1, 2, 3))
        return {"psnr": float((-10 * errors.log10()).mean())}

    def _decode(self, decoder: nn.Module, latents: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            decoded: Tensor = decoder(latents.to(self.device))
        return decoded.float()
