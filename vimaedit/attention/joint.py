"""Joint attention of picture and text that obeys an `AttentionControl`.

Queries, keys and values of both streams stand in one softmax. A row that takes over another row's attention takes the queries and
keys of its picture alone: whole maps would set the text of one prompt against the weights of another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vimaedit.attention.control import AttentionControl
from vimaedit.attention.processor import split_heads
from vimaedit.attention.sites import SiteChoice


class Heads(NamedTuple):
    """Queries, keys and values of one stream, (R, L, H, D) each."""

    query: Tensor
    key: Tensor
    value: Tensor


class JointProcessor(nn.Module):
    """Wrap a stock processor: without a control it is the stock processor, with one it routes the picture, records and hands on values."""

    def __init__(self, stock: Any, *, name: str, choice: SiteChoice) -> None:
        super().__init__()
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        self.stock = stock
        self.name = name
        self.routes_self = name in choice.self_routing
        self.routes_image = name in choice.image_routing
        self.records_self = name in choice.self_maps
        self.records_words = name in choice.text_maps
        self._attention_backend = None  # diffusers' `set_attention_backend` sets it per processor
        self._dispatch = dispatch_attention_fn

    # Not `forward`: diffusers reads the parameter names of `__call__` to decide which keyword arguments to hand over.
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        ip_hidden_states: list[Tensor] | None = None,
        control: AttentionControl | None = None,
        num_text: int = 0,
    ) -> Tensor | tuple[Tensor, ...]:
        """`num_text`: how many of the states of a layer without a text stream of its own are text; they stand first.
        `ip_hidden_states`: of image prompts, (R, pictures, I, E) each; a layer that has keys for them gives what it adds as a third."""
        prompts = [] if ip_hidden_states is None else list(zip(ip_hidden_states, *self._prompt_layers(), strict=False))
        if control is None:
            rotary: dict[str, Any] = {} if image_rotary_emb is None else {"image_rotary_emb": image_rotary_emb}
            if prompts:
                rotary["ip_hidden_states"] = ip_hidden_states
            output: Tensor | tuple[Tensor, ...] = self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, **rotary
            )
            return output
        assert attention_mask is None
        streams = _project(attn, hidden_states)
        image_query = streams.query  # as it is before it is turned
        if encoder_hidden_states is not None:
            num_text = encoder_hidden_states.shape[1]
            text = _project_text(attn, encoder_hidden_states)
            streams = Heads(*(torch.cat(pair, dim=1) for pair in zip(text, streams, strict=True)))
        if image_rotary_emb is not None:
            from diffusers.models.embeddings import apply_rotary_emb

            query, key = (apply_rotary_emb(each, image_rotary_emb, sequence_dim=1) for each in streams[:2])
            streams = Heads(query, key, streams.value)
        attended = self._attend(streams, num_text, control).flatten(2).to(hidden_states.dtype)
        if encoder_hidden_states is None:
            return _leave(attn, attended)
        of_text, of_image = attended[:, :num_text], attended[:, num_text:]
        if not attn.context_pre_only:
            of_text = attn.to_add_out(of_text)
        if not prompts:
            return _leave(attn, of_image), of_text
        shown = [self._attend_prompt(image_query, states, to_k, to_v, attn.heads, control) for states, to_k, to_v in prompts]
        return _leave(attn, of_image), of_text, torch.stack(shown).sum(dim=0).flatten(2).to(hidden_states.dtype)

    def _prompt_layers(self) -> tuple[list[Any], list[Any]]:
        """Return the keys' and values' layers of the image prompts, which the stock processor holds."""
        return list(getattr(self.stock, "to_k_ip", ())), list(getattr(self.stock, "to_v_ip", ()))

    def _attend_prompt(
        self, query: Tensor, states: Tensor, to_k: Any, to_v: Any, heads: int, control: AttentionControl
    ) -> Tensor:
        """Attend to an image prompt, scaled by row, (R, N, H, D)."""
        states = states.flatten(1, -2)  # the tokens of several pictures stand in a row
        key, value = split_heads(to_k(states), heads), split_heads(to_v(states), heads)
        if self.routes_image and control.image_from is not None:
            query, key = query[control.image_from], key[control.image_from]
        shown: Tensor = self._dispatch(query, key, value, backend=self._attention_backend)
        return control.image_scale[:, None, None, None] * shown

    def _attend(self, streams: Heads, num_text: int, control: AttentionControl) -> Tensor:
        """Attend with the text first, (R, T + N, H, D)."""
        query, key, value = streams
        if self.routes_self and control.self_from is not None:
            query, key = (torch.cat([each[:, :num_text], each[control.self_from, num_text:]], dim=1) for each in (query, key))
        if control.recorder is not None and (self.records_self or self.records_words):
            scale = query.shape[-1] ** -0.5
            control.recorder.add_joint(
                query[:, num_text:], key, num_text, scale, words=self.records_words, self_map=self.records_self
            )
        if control.values is not None:
            value = control.values.exchange(self.name, value)
        attended: Tensor = self._dispatch(query, key, value, backend=self._attention_backend)
        return attended


def _project(attn: Any, states: Tensor) -> Heads:
    query, key, value = (split_heads(layer(states), attn.heads) for layer in (attn.to_q, attn.to_k, attn.to_v))
    return Heads(_normed(query, attn.norm_q), _normed(key, attn.norm_k), value)


def _project_text(attn: Any, states: Tensor) -> Heads:
    layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    query, key, value = (split_heads(layer(states), attn.heads) for layer in layers)
    return Heads(_normed(query, attn.norm_added_q), _normed(key, attn.norm_added_k), value)


def _normed(heads: Tensor, norm: Any) -> Tensor:
    normed: Tensor = heads if norm is None else norm(heads)
    return normed


def _leave(attn: Any, attended: Tensor) -> Tensor:
    """Project out of the layer, where it does so itself."""
    if getattr(attn, "pre_only", False):
        return attended
    finished: Tensor = attn.to_out[1](attn.to_out[0](attended))
    return finished
