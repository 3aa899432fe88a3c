"""LPIPS by SqueezeNet 1.1 (Zhang et al. 2018): how far apart two pictures are in a network's features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vimaedit.errors import ConfigError, WrongWeights
from vimaedit.metrics.backbones import find_weights, installed_heads, read_tensors, wanted_tensors, weights_file
from vimaedit.metrics.pixels import blank_empty, mask_pictures
from vimaedit.models.losses import check_finite

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in -1 to 1
LEAST_SQUARE = 1e-8  # keeps features that are all zero from a division by zero
# (layer of the network, channels between, channels out of either half) of the fire modules.
FIRES = ((3, 16, 64), (4, 16, 64), (6, 32, 128), (7, 32, 128), (9, 48, 192), (10, 48, 192), (11, 64, 256), (12, 64, 256))
POOLS = (2, 5, 8)
TAPPED = (1, 4, 7, 9, 10, 11, 12)  # layers whose output is compared
WIDTHS = (64, 128, 256, 384, 384, 512, 512)
MIN_SIDE_PX = 32  # of a picture that leaves something to compare at every layer
ALL_HEADS = "lpips_heads"  # one after another in a single array


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1x1 and 3x3 side by side."""

    def __init__(self, channels: int, between: int, out: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, between, 1)
        self.expand1x1 = nn.Conv2d(between, out, 1)
        self.expand3x3 = nn.Conv2d(between, out, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        squeezed = self.squeeze(features).relu()
        return torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], dim=1).relu()


class LpipsNetwork(nn.Module):
    """SqueezeNet 1.1 without its classifier, and a linear head for each layer that is compared."""

    def __init__(self) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {"0": nn.Conv2d(3, 64, 3, stride=2), "1": nn.ReLU()}
        channels = 64
        for number, between, out in FIRES:
            layers[str(number)] = Fire(channels, between, out)
            channels = 2 * out
        layers |= {str(number): nn.MaxPool2d(3, stride=2, ceil_mode=True) for number in POOLS}
        self.features = nn.ModuleDict({name: layers[name] for name in sorted(layers, key=int)})
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in WIDTHS)

    def layers(self, pictures: Tensor) -> list[Tensor]:
        """Return the compared layers, each pixel's features of unit length: (B, 3, height, width) in -1 to 1."""
        shift, scale = (pictures.new_tensor(values).view(3, 1, 1) for values in (SHIFT, SCALE))
        features = (pictures - shift) / scale
        found = []
        for name, layer in self.features.items():
            features = layer(features)
            if int(name) in TAPPED:
                found.append(features / (LEAST_SQUARE + features.square().sum(1, keepdim=True)).sqrt())
        return found

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return each layer's share of the distance, (B, 7): pictures (B, 3, height, width) in -1 to 1."""
        shares = []
        for ours, theirs, head in zip(self.layers(first), self.layers(second), self.heads, strict=True):
            weighted = torch.einsum("bchw,c->bhw", (ours - theirs).square(), head)
            shares.append(weighted.flatten(1).mean(1, dtype=torch.float64))
        return torch.stack(shares, dim=1)


def load_lpips(name: str, heads: str | None = None, device: torch.device | str = "cpu") -> LpipsNetwork:
    """Load SqueezeNet 1.1 (ImageNet's, by torchvision's names) and the heads; None: those of an installed package. Float32.

    Raises: ConfigError where either cannot be had or is something else.
    """
    network = LpipsNetwork()
    path = weights_file("lpips", find_weights("lpips", name))
    tensors = read_tensors("lpips", path)
    found = {key if key.startswith("features.") else f"features.{key}": value for key, value in tensors.items()}
    wanted = [key for key in network.state_dict() if key.startswith("features.")]
    whole = wanted_tensors("lpips", path, found, wanted)
    try:
        network.load_state_dict({**network.state_dict(), **whole})
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[-1].strip()
        raise WrongWeights(f"lpips: got {str(path)!r}, which is no SqueezeNet 1.1: {reason}; allowed: its weights") from error
    for head, values in zip(network.heads, _load_heads(heads), strict=True):
        head.data.copy_(values)
    return network.to(device).eval().requires_grad_(False)


def _load_heads(name: str | None) -> list[Tensor]:
    """Read the seven heads: `lin<n>.model.1.weight` as published, or one array with all of them."""
    path = installed_heads() if name is None else weights_file("lpips_heads", find_weights("lpips_heads", name))
    if path is None:
        raise ConfigError(
            "lpips_heads: got nothing, and no installed package has them; allowed: the path of squeeze.pth of LPIPS 0.1, or "
            "pip install torchmetrics"
        )
    tensors = read_tensors("lpips_heads", path)
    if ALL_HEADS in tensors:
        parts = list(tensors[ALL_HEADS].flatten().split(list(WIDTHS))) if tensors[ALL_HEADS].numel() == sum(WIDTHS) else []
    else:
        parts = [value.flatten() for key, value in sorted(tensors.items()) if key.startswith("lin") and key.endswith(".weight")]
    if tuple(len(part) for part in parts) != WIDTHS:
        raise WrongWeights(
            f"lpips_heads: got {str(path)!r} with heads of {[len(part) for part in parts]} channels; allowed: those for "
            f"SqueezeNet, {list(WIDTHS)}"
        )
    check_finite("lpips_heads", repr(str(path)), {f"head {number}": part for number, part in enumerate(parts)})
    return parts


def lpips_distance(network: LpipsNetwork, first: Tensor, second: Tensor, region: Tensor | None = None) -> Tensor:
    """Return the LPIPS of pictures, (B,) float64; NaN where a region is empty and for sides under 32 px.

    Pixels outside the region are black before values become -1 to 1.

    Shapes: `first`, `second` (B, 3, height, width) uint8, `region` (B, 1, height, width) bool.
    """
    if min(first.shape[-2:]) < MIN_SIDE_PX:
        return torch.full((len(first),), torch.nan, dtype=torch.float64, device=first.device)
    ours, theirs = (2 * mask_pictures(pictures, region).float() / 255 - 1 for pictures in (first, second))
    distance: Tensor = network(ours, theirs).sum(1)
    return blank_empty(distance, region)
