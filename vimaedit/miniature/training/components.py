"""The encoder of the miniature's autoencoder: principal components of patches, set rather than trained.

A latent holds the leading components of its 8 x 8 pixels. They are found in two steps, 4 x 4 pixels first, since the encoder's
layers have that shape. Each is divided by the root of its standard deviation, between leaving the large ones to dominate (1) and
making noise of the small ones as loud as the picture (the standard deviation itself).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from vimaedit.miniature.family import LATENT_CHANNELS, VAE_CHANNELS, VAE_GROUPS

_INNER = VAE_CHANNELS[1]  # components kept of 4 x 4 pixels
_ANCHOR = 512.0  # constant beside which the latents do not count in a group's variance
_LOG_VARIANCE = -12.0  # of the posterior: next to none
# Pixels of 4 x 4 in the order in which two rearrangements of 2 x 2 leave them.
_ORDER = torch.arange(48).view(2, 2, 2, 2, 3).permute(0, 2, 1, 3, 4).flatten()


@dataclass(frozen=True, eq=False)
class Components:
    """Two linear maps of 2 x 2 blocks of what lies below, and their offsets.

    Shapes: `inner` (48, 32) and `inner_offset` (32,) on pixels; `outer` (128, 32) and `outer_offset` (32,) on those.
    """

    inner: Tensor
    inner_offset: Tensor
    outer: Tensor
    outer_offset: Tensor

    def to(self, device: torch.device) -> Components:
        """Return them on a device."""
        return Components(**{name: value.to(device) for name, value in vars(self).items()})

    def encode(self, pixels: Tensor) -> Tensor:
        """Return what the autoencoder's encoder returns for them, (B, 3, H, W) in -1..1 -> (B, 32, H/8, W/8)."""
        inner = _blocks(pixels, 4) @ self.inner + self.inner_offset
        outer = _blocks(inner.permute(0, 3, 1, 2), 2) @ self.outer + self.outer_offset
        return outer.permute(0, 3, 1, 2)


def fit_components(pixels: Tensor) -> Components:
    """Find the components in pictures (B, 3, H, W) in -1..1. Latents of such pictures have unit variance over all channels."""
    inner, inner_offset, _ = _principal(_blocks(pixels, 4), _INNER)
    below = _blocks(pixels, 4) @ inner + inner_offset
    outer, outer_offset, deviation = _principal(_blocks(below.permute(0, 3, 1, 2), 2), LATENT_CHANNELS)
    scale = 1 / (deviation * deviation.mean()).sqrt()
    return Components(inner, inner_offset, outer * scale, outer_offset * scale)


def set_encoder(autoencoder: AutoencoderKL, components: Components) -> None:
    """Give an autoencoder's encoder the weights with which it computes the components.

    Every block passes on what it gets; the linear maps stand in the strided convolutions. The group norm at the end sees
    constants so large that it divides by those alone, and its activation cancels out between a channel and its negative:
    silu(y) - silu(-y) = y.
    """
    encoder = autoencoder.encoder
    for parameter in encoder.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        _pass_on(encoder.conv_in.weight, 3)
        for below, block in zip((0, 4 * 3, _INNER), encoder.down_blocks[:3], strict=True):
            if block.resnets[0].conv_shortcut is not None:
                _pass_on(block.resnets[0].conv_shortcut.weight, below)
        rearrange, inner, outer = (block.downsamplers[0].conv for block in encoder.down_blocks[:3])
        _set_blocks(rearrange, torch.eye(12), torch.zeros(12))
        _set_blocks(inner, components.inner[_ORDER], components.inner_offset)
        _set_blocks(outer, components.outer, components.outer_offset)
        size = VAE_CHANNELS[-1] // VAE_GROUPS
        spread, out = encoder.down_blocks[3].resnets[0].conv_shortcut, encoder.conv_out
        encoder.conv_norm_out.weight.fill_(_ANCHOR * (2 / size) ** 0.5)
        for channel in range(LATENT_CHANNELS):
            group, pair = channel % VAE_GROUPS, channel // VAE_GROUPS
            plus = group * size + 2 * pair
            spread.weight[plus, channel], spread.weight[plus + 1, channel] = 1.0, -1.0
            out.weight[channel, plus, 1, 1], out.weight[channel, plus + 1, 1, 1] = 1.0, -1.0
        spread.bias[size - 2 :: size], spread.bias[size - 1 :: size] = _ANCHOR, -_ANCHOR
        out.bias[LATENT_CHANNELS:] = _LOG_VARIANCE


def read_components(weights: Mapping[str, Tensor]) -> Components:
    """Return the components that an encoder was set to, from its weights by their names in the autoencoder."""
    inner, outer = (
        (
            weights[f"encoder.down_blocks.{n}.downsamplers.0.conv.weight"].float(),
            weights[f"encoder.down_blocks.{n}.downsamplers.0.conv.bias"].float(),
        )
        for n in (1, 2)
    )
    ordered = _read_blocks(inner[0], 12, _INNER)
    matrix = torch.empty_like(ordered)
    matrix[_ORDER] = ordered
    return Components(matrix, inner[1][:_INNER], _read_blocks(outer[0], _INNER, LATENT_CHANNELS), outer[1][:LATENT_CHANNELS])


def _blocks(values: Tensor, side: int) -> Tensor:
    """Cut (B, C, H, W) into blocks: (B, H / side, W / side, side * side * C), the rows of a block one after the other."""
    rows, columns = values.shape[2] // side, values.shape[3] // side
    cut = values.unflatten(2, (rows, side)).unflatten(4, (columns, side))
    blocks: Tensor = cut.permute(0, 2, 4, 3, 5, 1).flatten(3)
    return blocks


def _principal(blocks: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading principal directions (D, count), the offset that centres them, and their standard deviations."""
    flat = blocks.flatten(0, -2).double()
    mean = flat.mean(dim=0)
    variances, directions = torch.linalg.eigh(torch.cov((flat - mean).T))
    directions = directions.flip(1)[:, :count]
    strongest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    directions = directions * strongest.sign()  # which of the two signs a library returns must not matter
    offset = -(mean @ directions)
    return directions.float(), offset.float(), variances.flip(0)[:count].clamp(min=0).sqrt().float()


def _pass_on(weight: Tensor, count: int) -> None:
    middle = weight.shape[-1] // 2
    for channel in range(count):
        weight[channel, channel, middle, middle] = 1.0


def _set_blocks(convolution: nn.Conv2d, matrix: Tensor, offset: Tensor) -> None:
    """Let a strided convolution compute `matrix` (4 * C, outputs) of each 2 x 2 block of its first C inputs."""
    inputs, outputs = matrix.shape[0] // 4, matrix.shape[1]
    taps = matrix.view(2, 2, inputs, outputs).permute(3, 2, 0, 1)
    convolution.weight[:outputs, :inputs] = F.pad(taps, (0, 1, 0, 1))
    assert convolution.bias is not None
    convolution.bias[:outputs] = offset


def _read_blocks(weight: Tensor, inputs: int, outputs: int) -> Tensor:
    """Return the matrix that `_set_blocks` put into a convolution's weights."""
    return weight[:outputs, :inputs, :2, :2].permute(2, 3, 1, 0).reshape(4 * inputs, outputs)
