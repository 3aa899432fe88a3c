"""The attention layers of a UNet, named by path and side, and the choice of those that an editor touches.

Side = the layer's side over the latent's side (1, 1/2, 1/4, ...). Nothing is ever chosen by index or absolute size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vimaedit.errors import ConfigError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from torch import nn


@dataclass(frozen=True)
class Site:
    """One attention layer: `name` of its processor, `path` down, mid or up, relative `side`, `cross` or self-attention.

    A layer of joint attention is two, cross and self; its path says how many streams its block has, double or single, `block` which it
    is of all, single ones behind double ones. `grounds`: grounding may read it.
    """

    name: str
    path: str
    side: float
    cross: bool
    grounds: bool = True
    block: int | None = None


@dataclass(frozen=True)
class SiteChoice:
    """What happens where, as sets of processor names: whose self-attention and image attention may be taken over, and
    which layers' weights grounding reads. The text attention of every layer can be edited. `before_text`: the self-attention that a
    UNet comes to before anything of its text."""

    self_routing: frozenset[str]
    image_routing: frozenset[str]
    self_maps: frozenset[str]
    text_maps: frozenset[str]
    before_text: frozenset[str] = frozenset()


def list_sites(unet: UNet2DConditionModel) -> tuple[Site, ...]:
    """List every attention layer of the transformer blocks, in the order of `unet.attn_processors`."""
    down_sides = [1.0]
    for block in unet.down_blocks:
        down_sides.append(down_sides[-1] / 2 if block.downsamplers is not None else down_sides[-1])
    up_sides = [down_sides[-1]]
    for block in unet.up_blocks:
        up_sides.append(up_sides[-1] * 2 if block.upsamplers is not None else up_sides[-1])
    sites = []
    for name in unet.attn_processors:
        parts = name.split(".")
        path = parts[0].removesuffix("_blocks").removesuffix("_block")
        side = {"down": down_sides, "up": up_sides}[path][int(parts[1])] if path != "mid" else down_sides[-1]
        sites.append(Site(name=name, path=path, side=side, cross=parts[-2] == "attn2", grounds=path != "mid"))
    return tuple(sites)


def joint_sites(
    blocks: str, numbers: range, side: float, grounds: range, *, path: str = "double", before: int = 0
) -> tuple[Site, ...]:
    """List the joint attention of a row of blocks, which is to self and to text at once; `before`: how many blocks there are before it."""
    return tuple(
        Site(
            name=f"{blocks}.{number}.attn.processor",
            path=path,
            side=side,
            cross=cross,
            grounds=number in grounds,
            block=before + number,
        )
        for number in numbers
        for cross in (False, True)
    )


def ground_on(sites: tuple[Site, ...], blocks: Sequence[int]) -> tuple[Site, ...]:
    """Let grounding read the joint attention of these blocks and no other.

    Raises: ConfigError for a block that there is none of.
    """
    there = sorted({site.block for site in sites if site.block is not None})
    for block in blocks:
        if block not in there:
            allowed = f"{there[0]} to {there[-1]}" if there else "none, layers of this model are chosen by grounding_sides"
            raise ConfigError(f"grounding_blocks: got {block}; allowed: {allowed}")
    return tuple(replace(site, grounds=site.block in blocks) for site in sites)


def choose_sites(
    sites: tuple[Site, ...],
    *,
    window_side: float,
    self_side: float | None,
    cross_side: float | None,
    routed: str = "coarse",
    coarser_side: float = 0.25,
    reads_middle: bool = False,
) -> SiteChoice:
    """Choose the layers that an editor touches.

    Self-attention is routed where `routed` says: `coarse` and `coarser` on every path at `window_side` or `coarser_side` and
    below, `fine-decoder` on the way up at `window_side` and above, `decoder` on the way up but for the first layer, or `all`.
    Image attention is routed on every path at `window_side` and below. Grounding reads those that it may (down and up, mid only with
    `reads_middle`) at exactly `self_side` and `cross_side`; None: it does not read that kind.

    Raises: ConfigError where grounding finds no layer at a side.
    """
    own = [s for s in sites if not s.cross]
    first_up = next((s.name for s in own if s.path == "up"), None)
    chosen = {
        "coarse": [s for s in own if s.side <= window_side],
        "coarser": [s for s in own if s.side <= coarser_side],
        "fine-decoder": [s for s in own if s.path == "up" and s.side >= window_side],
        "decoder": [s for s in own if s.path == "up" and s.name != first_up],
        "all": own,
    }[routed]
    return SiteChoice(
        self_routing=frozenset(s.name for s in chosen),
        image_routing=frozenset(s.name for s in sites if s.cross and s.side <= window_side),
        self_maps=_grounding_sites(sites, "self", self_side, reads_middle),
        text_maps=_grounding_sites(sites, "cross", cross_side, reads_middle),
        before_text=frozenset(s.name for s in own[:1] if s.path == "down"),
    )


def feature_layer(unet: UNet2DConditionModel) -> nn.Module:
    """Return the layer whose features Plug-and-Play copies: the last convolution of the second residual block in the first block
    on the way up that has attention to text; before the shortcut is added.

    Raises: ConfigError where the UNet has no such block.
    """
    for block in unet.up_blocks:
        if getattr(block, "has_cross_attention", False) and len(block.resnets) > 1:
            layer: nn.Module = block.resnets[1].conv2
            return layer
    raise ConfigError("method: got pnp with a UNet that has no decoder block with two residual blocks and text attention")


def _grounding_sites(sites: tuple[Site, ...], kind: str, side: float | None, reads_middle: bool) -> frozenset[str]:
    if side is None:
        return frozenset()
    candidates = [s for s in sites if s.cross == (kind == "cross") and (s.grounds or (reads_middle and s.path == "mid"))]
    chosen = frozenset(s.name for s in candidates if s.side == side)
    if not chosen:
        sides = ", ".join(str(s) for s in sorted({s.side for s in candidates}, reverse=True))
        raise ConfigError(f"grounding_sides.{kind}: got {side}, where this model has no such layer; allowed: {sides or 'none'}")
    return chosen
