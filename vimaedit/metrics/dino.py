"""Structure distance: how differently a DINO ViT-B/8 finds the parts of two pictures related (Tumanyan et al. 2022)."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from vimaedit.errors import WrongWeights
from vimaedit.metrics.backbones import find_weights, read_tensors, wanted_tensors, weights_file
from vimaedit.metrics.pixels import blank_empty, mask_pictures

NUM_HEADS = 12  # of ViT-B, the only size for which distances compare
NORM_EPS = 1e-6  # of the original networks; public copies for transformers state another
SHORT_SIDE, MAX_SIDE = 224, 480
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEAST_NORMS = 1e-8  # of the product of two keys' norms
# transformers' names -> the original ones. Query, key and value are fused there.
RENAMED = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"^encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
FUSED = ("query", "key", "value")


class Block(nn.Module):
    """A layer of the network. Shapes: tokens (B, N, E)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2)
            for part in self.attn["qkv"](self.norm1(tokens)).chunk(3, dim=-1)
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.attn["proj"](attended.transpose(1, 2).flatten(2))
        hidden = nn.functional.gelu(self.mlp["fc1"](self.norm2(tokens)))
        mixed: Tensor = tokens + self.mlp["fc2"](hidden)
        return mixed

    def keys(self, tokens: Tensor) -> Tensor:
        """Return the keys of all heads side by side, (B, N, E)."""
        keys: Tensor = self.attn["qkv"](self.norm1(tokens)).chunk(3, dim=-1)[1]
        return keys


class KeyNetwork(nn.Module):
    """A DINO vision transformer up to the keys of its last layer, class token first."""

    def __init__(self, *, width: int, hidden: int, depth: int, patch: int, num_positions: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(depth))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the keys: normalised pixels (B, 3, height, width) -> (B, 1 + N, E)."""
        patches = self.patch_embed["proj"](pixels)
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + self._positions(patches.shape[-2], patches.shape[-1])
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens)
        keys: Tensor = last.keys(tokens)  # type: ignore[operator]
        return keys

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the position embeddings of a grid of patches, resized (bicubic) from the square one they were learnt on."""
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (rows, columns) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = nn.functional.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def load_dino(name: str, device: torch.device | str = "cpu") -> KeyNetwork:
    """Load a DINO ViT-B/8: original checkpoint or transformers ViTModel, as file, folder or hub id; float32.

    Raises: ConfigError where there is none, or another kind of network.
    """
    path = weights_file("dino", find_weights("dino", name))
    tensors = original_names(read_tensors("dino", path))
    try:
        network = KeyNetwork(
            width=tensors["cls_token"].shape[-1],
            hidden=tensors["blocks.0.mlp.fc1.weight"].shape[0],
            depth=len({key.split(".")[1] for key in tensors if key.startswith("blocks.")}),
            patch=tensors["patch_embed.proj.weight"].shape[-1],
            num_positions=tensors["pos_embed"].shape[1],
        )
        if network.cls_token.shape[-1] % NUM_HEADS:
            raise ValueError(f"its width {network.cls_token.shape[-1]} does not divide among {NUM_HEADS} heads")
        network.load_state_dict(wanted_tensors("dino", path, tensors, network.state_dict()))
    except (LookupError, RuntimeError, ValueError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).strip().split("\n")[0]
        raise WrongWeights(f"dino: got {str(path)!r}, which is no DINO ViT-B/8: {reason}; allowed: its weights") from error
    return network.to(device).eval().requires_grad_(False)


def original_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring the names of a checkpoint to those of the original network, whichever public form it has."""
    plain = {re.sub(r"^(module\.|backbone\.|vit\.)+", "", key): value for key, value in tensors.items()}
    found: dict[str, Tensor] = {}
    for key, value in plain.items():
        if ".attention.attention." in key:
            continue
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        found[key] = value
    for key in plain:
        layer = re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.query\.(weight|bias)", key)
        if layer is not None:
            parts = [plain[key.replace(".query.", f".{part}.")] for part in FUSED]
            found[f"blocks.{layer[1]}.attn.qkv.{layer[2]}"] = torch.cat(parts)
    return found


def dino_pixels(pictures: Tensor) -> Tensor:
    """Prepare pictures as the published evaluation does: (B, 3, height, width) uint8 -> float32.

    The values stay 0 to 255 before ImageNet's mean and deviation are taken off, though the network was trained on 0 to 1: so
    were the published figures made. The short side becomes 224, the long one at most 480.
    """
    height, width = pictures.shape[-2:]
    short, long = SHORT_SIDE, int(SHORT_SIDE * max(height, width) / min(height, width))
    if long > MAX_SIDE:
        short, long = int(MAX_SIDE * short / long), MAX_SIDE
    size = (long, short) if height >= width else (short, long)
    pixels = nn.functional.interpolate(pictures.float(), size, mode="bilinear", antialias=True, align_corners=False)
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    normalised: Tensor = (pixels - mean) / std
    return normalised


def self_similarity(keys: Tensor) -> Tensor:
    """Return the cosines of all pairs of keys: (B, N, E) -> (B, N, N)."""
    norms = keys.norm(dim=-1, keepdim=True)
    cosines: Tensor = keys @ keys.mT / (norms * norms.mT).clamp(min=LEAST_NORMS)
    return cosines


def structure_distance(network: KeyNetwork, first: Tensor, second: Tensor, region: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of the pictures' self-similarities, (B,) float64; NaN where a region is empty.

    Shapes: `first`, `second` (B, 3, height, width) uint8, `region` (B, 1, height, width) bool.
    """
    both = torch.cat([mask_pictures(pictures, region) for pictures in (first, second)])
    ours, theirs = self_similarity(network(dino_pixels(both))).chunk(2)
    return blank_empty((ours - theirs).square().flatten(1).mean(1, dtype=torch.float64), region)
