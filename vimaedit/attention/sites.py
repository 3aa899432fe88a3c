"""The attention layers of a UNet, named by path and side, and the choice of those that an editor touches.

Side = the layer's side over the latent's side (1, 1/2, 1/4, ...). Nothing is ever chosen by index or absolute size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vimaedit.errors import ConfigError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


@dataclass(frozen=True)
class Site:
    """One attention layer: `name` of its processor, `path` down, mid or up, relative `side`, `cross` or self-attention."""

    name: str
    path: str
    side: float
    cross: bool


@dataclass(frozen=True)
class SiteChoice:
    """What happens where, as sets of processor names: whose self-attention and image attention may be taken over, and
    which layers' weights grounding reads. The text attention of every layer can be edited."""

    self_routing: frozenset[str]
    image_routing: frozenset[str]
    self_maps: frozenset[str]
    text_maps: frozenset[str]


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
        sites.append(Site(name=name, path=path, side=side, cross=parts[-2] == "attn2"))
    return tuple(sites)


def choose_sites(
    sites: tuple[Site, ...], *, window_side: float, self_side: float | None, cross_side: float | None
) -> SiteChoice:
    """Choose the layers of the ViMAEdit family.

    Windows act on every path at `window_side` and below. Grounding reads down and up (never mid) at exactly `self_side` and
    `cross_side`; None: it does not read that kind.

    Raises: ConfigError where grounding finds no layer at a side.
    """
    return SiteChoice(
        self_routing=frozenset(s.name for s in sites if not s.cross and s.side <= window_side),
        image_routing=frozenset(s.name for s in sites if s.cross and s.side <= window_side),
        self_maps=_grounding_sites(sites, "self", self_side),
        text_maps=_grounding_sites(sites, "cross", cross_side),
    )


def _grounding_sites(sites: tuple[Site, ...], kind: str, side: float | None) -> frozenset[str]:
    if side is None:
        return frozenset()
    candidates = [s for s in sites if s.cross == (kind == "cross") and s.path != "mid"]
    chosen = frozenset(s.name for s in candidates if s.side == side)
    if not chosen:
        sides = ", ".join(str(s) for s in sorted({s.side for s in candidates}, reverse=True))
        raise ConfigError(f"grounding_sides.{kind}: got {side}, where this UNet has no such layer; allowed: {sides or 'none'}")
    return chosen
