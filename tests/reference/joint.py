"""Joint attention with explicit weights (SD3, FLUX): picture and text in one softmax, nothing fused, every map whole."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class JointEdits:
    """What one call of the denoiser does. `takes_from` (rows,): the row whose picture's queries and keys each row uses in the
    `routed` layers, None: its own.

    `maps`: by processor name the weights of every layer after that, (rows, heads, queries, keys), text first. `values`: put in place
    of a layer's own, by name.
    """

    takes_from: Tensor | None = None
    routed: set[str] = field(default_factory=set)
    values: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)


class MaterialisingJoint:
    """The processor of one joint layer. `num_text` is set where text and picture come as one sequence."""

    def __init__(self, name: str, edits: JointEdits, num_text: int) -> None:
        self.name, self.edits, self.num_text = name, edits, num_text

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        assert attention_mask is None
        parts = [(hidden_states, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)]
        num_text = 0
        if encoder_hidden_states is not None:
            num_text = encoder_hidden_states.shape[1]
            added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.norm_added_q, attn.norm_added_k)
            parts.insert(0, (encoder_hidden_states, *added))
        elif image_rotary_emb is not None:
            num_text = self.num_text
        queries, keys, values = [], [], []
        for states, to_q, to_k, to_v, norm_q, norm_k in parts:
            q, k, v = (layer(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in (to_q, to_k, to_v))
            queries.append(q if norm_q is None else norm_q(q))
            keys.append(k if norm_k is None else norm_k(k))
            values.append(v)
        q, k, v = (torch.cat(each, dim=2) for each in (queries, keys, values))
        if image_rotary_emb is not None:
            q, k = (rotate(each, *image_rotary_emb) for each in (q, k))
        if self.edits.takes_from is not None and self.name in self.edits.routed:
            for row, other in enumerate(self.edits.takes_from.tolist()):
                if row != other:
                    q[row, :, num_text:], k[row, :, num_text:] = q[other, :, num_text:], k[other, :, num_text:]
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
        self.edits.maps[self.name] = weights
        out = (weights @ self.edits.values.get(self.name, v)).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return out if getattr(attn, "pre_only", False) else attn.to_out[0](out)
        of_text, of_image = out[:, :num_text], out[:, num_text:]
        return attn.to_out[0](of_image), of_text if attn.context_pre_only else attn.to_add_out(of_text)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring pairs of numbers: (a, b) -> (a cos - b sin, b cos + a sin). Shape (rows, heads, tokens, D)."""
    a, b = x[..., 0::2], x[..., 1::2]
    c, s = cos[:, 0::2], sin[:, 0::2]
    return torch.stack([a * c - b * s, b * c + a * s], dim=-1).flatten(-2)


def install(denoiser: nn.Module, edits: JointEdits, num_text: int) -> None:
    """Put a materialising processor on every attention layer of an SD3 or FLUX transformer."""
    names = list(denoiser.attn_processors)
    denoiser.set_attn_processor({name: MaterialisingJoint(name, edits, num_text) for name in names})


def word_map(weights: Tensor, words: Tensor) -> Tensor:
    """Return what the picture's tokens see of the words, mean over heads: (rows, heads, T + N, T + N), (rows, T) -> (rows, N)."""
    num_text = words.shape[1]
    return torch.einsum("rhqt,rt->rq", weights[:, :, num_text:, :num_text], words) / weights.shape[1]


def self_map(weights: Tensor, num_text: int) -> Tensor:
    """Return what the picture's tokens see of each other, each row of each head over its own mass, mean over heads: (rows, N, N)."""
    quadrant = weights[:, :, num_text:, num_text:]
    return (quadrant / quadrant.sum(dim=-1, keepdim=True)).mean(dim=1)
