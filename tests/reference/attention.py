"""Attention with explicit weights, edited as the method says, on the attention layers of a Stable Diffusion UNet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

SOURCE_COND, TARGET_COND = 2, 3  # rows; the unconditional ones are never edited
QUERIES_AT_ONCE = 32
Edit = Callable[[Tensor, Tensor], Tensor]  # (source weights, target weights), each (heads, queries, keys) -> target weights


@dataclass(frozen=True)
class Layer:
    """Where an attention layer sits: `down`, `mid` or `up`, and the resolution level, 0 = the latent's own sides."""

    path: str
    level: int


@dataclass
class StepEdits:
    """What one UNet call does to the target's weights, and which layers' weights it keeps.

    Sides are those of the layer over the latent's. Kept maps, one per layer, are head means of the weights *after* the edits:
    (2, queries, keys), source and target.
    """

    self_edit: Edit | None
    text_edit: Edit | None
    image_edit: Edit | None
    image_strength: float
    kept_self_side: float
    kept_text_side: float
    latent_sides: tuple[int, int]
    self_maps: list[Tensor] = field(default_factory=list)
    text_maps: list[Tensor] = field(default_factory=list)


class MapStore:
    """What a published attention controller keeps: every map of the present step, and the sums over all steps."""

    def __init__(self) -> None:
        self.of_step: list[Tensor] = []
        self.sums: list[Tensor] = []

    def end_step(self) -> None:
        """Add the step's maps to the sums."""
        if self.sums:
            for total, weights in zip(self.sums, self.of_step, strict=True):
                total += weights
        else:
            self.sums = self.of_step
        self.of_step = []


class MaterialisingProcessor:
    """The processor of one attention layer. `edits` is set before each UNet call; image tokens follow the text tokens.

    `image_keys`, `image_values`: the IP-Adapter's projections (inner width, context width), None in self-attention or without
    an adapter. `store`: where every map is kept whole; None: no longer than they are needed.
    """

    def __init__(
        self,
        layer: Layer,
        image_keys: Tensor | None,
        image_values: Tensor | None,
        num_image_tokens: int,
        store: MapStore | None = None,
    ) -> None:
        self.layer = layer
        self.store = store
        self.image_keys = image_keys
        self.image_values = image_values
        self.num_image_tokens = num_image_tokens
        self.edits: StepEdits | None = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        assert attention_mask is None and self.edits is not None
        edits = self.edits
        side = 0.5**self.layer.level
        height, width = (round(full * side) for full in edits.latent_sides)
        assert hidden_states.shape[1] == height * width
        read = self.layer.path != "mid"
        coarse = 4 * height * width <= edits.latent_sides[0] * edits.latent_sides[1]

        if encoder_hidden_states is None:
            kept = edits.self_maps if read and side == edits.kept_self_side else None
            out = self._attend(
                attn,
                hidden_states,
                attn.to_k(hidden_states),
                attn.to_v(hidden_states),
                edits.self_edit if coarse else None,
                kept,
            )
        else:
            num_text = encoder_hidden_states.shape[1] - self.num_image_tokens
            text, image = encoder_hidden_states[:, :num_text], encoder_hidden_states[:, num_text:]
            kept = edits.text_maps if read and side == edits.kept_text_side else None
            out = self._attend(attn, hidden_states, attn.to_k(text), attn.to_v(text), edits.text_edit, kept)
            if self.num_image_tokens:
                keys, values = image @ self.image_keys.T, image @ self.image_values.T
                shown = self._attend(attn, hidden_states, keys, values, edits.image_edit if coarse else None, None)
                out = out + edits.image_strength * shown
        return attn.to_out[1](attn.to_out[0](out))

    def _attend(self, attn, hidden_states, keys, values, edit: Edit | None, kept: list[Tensor] | None) -> Tensor:
        """Return softmax(Q K / sqrt(D)) V: (4, queries, inner width).

        Queries do not see each other, so where no map is kept whole they are taken in parts, which stay in the processor's cache.
        """
        queries, keys, values = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (attn.to_q(hidden_states), keys, values)
        )
        outputs, maps = [], []
        for part in queries.split(queries.shape[2] if self.store is not None else QUERIES_AT_ONCE, dim=2):
            weights = torch.softmax((part * attn.scale) @ keys.transpose(-1, -2), dim=-1)
            if edit is not None:
                weights[TARGET_COND] = edit(weights[SOURCE_COND], weights[TARGET_COND])
            outputs.append(weights @ values)
            if self.store is not None:
                self.store.of_step.append(weights)
            if kept is not None:
                maps.append(weights[[SOURCE_COND, TARGET_COND]].mean(dim=1))
        if kept is not None:
            kept.append(torch.cat(maps, dim=1))
        return torch.cat(outputs, dim=2).transpose(1, 2).flatten(2)


def install(
    unet: nn.Module, adapter: Mapping[str, Tensor] | None, num_image_tokens: int, store: MapStore | None = None
) -> dict[str, MaterialisingProcessor]:
    """Put a materialising processor on every attention layer of a UNet and return them by name.

    `adapter` holds an IP-Adapter's tensors by their names in its file; its layers are numbered among all attention layers.
    `store`: where all of them keep their maps.
    """
    num_levels = len(unet.config.block_out_channels)
    processors = {}
    for index, name in enumerate(unet.attn_processors):
        keys = values = None
        if adapter is not None and ".attn2." in name:
            keys = adapter[f"ip_adapter.{index}.to_k_ip.weight"]
            values = adapter[f"ip_adapter.{index}.to_v_ip.weight"]
        layer = find_layer(name, num_levels)
        processors[name] = MaterialisingProcessor(layer, keys, values, num_image_tokens if adapter is not None else 0, store)
    unet.set_attn_processor(dict(processors))  # it empties the dict that it is given
    return processors


def find_layer(name: str, num_levels: int) -> Layer:
    """Read a layer's place from its name: each down block but the last halves the sides, each up block but the last doubles them."""
    block, number = name.split(".")[:2]
    if block == "down_blocks":
        return Layer("down", int(number))
    if block == "up_blocks":
        return Layer("up", num_levels - 1 - int(number))
    return Layer("mid", num_levels - 1)


def take_source(source: Tensor, target: Tensor) -> Tensor:
    """Edit of self- and image attention: the source's weights."""
    return source


def refine(mapper: Tensor, keep_source: Tensor, equalizer: Tensor) -> Edit:
    """Edit of text attention for aligned prompts: an aligned target token takes its source token's column, others keep their own.

    `mapper` (T,) int: the source token of each target token; `keep_source` (T,): 1 where aligned, 0 where inserted; `equalizer` (T,)
    multiplies the result.
    """
    return lambda source, target: (source[..., mapper] * keep_source + target * (1 - keep_source)) * equalizer


def replace(mapper: Tensor, equalizer: Tensor) -> Edit:
    """Edit of text attention for replaced words: `mapper` (T source, T target) spreads the source's columns."""
    return lambda source, target: (source @ mapper) * equalizer
