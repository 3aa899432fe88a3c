"""Attention weights for grounding: averaged over heads and layers at once, into buffers allocated beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TextProbe:
    """Keeps the text attention of every layer of one UNet call as it is, a gradient's way included: (R, H, L, T) each."""

    weights: list[Tensor]

    def add(self, query_RLHD: Tensor, key_RTHD: Tensor, scale: float) -> None:
        self.weights.append(_text_weights(query_RLHD, key_RTHD, scale))


@dataclass(frozen=True, eq=False)
class MapRecorder:
    """Sums of attention weights in one UNet call, for Q = 2 B recorded rows (the conditional ones, sources first).

    What is summed are the weights after the controls acted. The word map of an edited row reads its edited text map through
    its columns: P_edit m = P_source (W m) + P_own (w m), m = the tokens of the blend phrases.

    Shapes: `rows` (Q,) int64, the recorded rows; `word_from` (Q,) int64, the rows they take text attention from; `word_own`, `word_source` (Q, T) float32; `self_sum` (Q, N, N), `word_sum` (Q, n) float32; None: not read.
    With `token_sum` (Q, n, T) the rows' own text maps are summed instead, token by token, as they are before any edit.
    """

    rows: Tensor
    word_from: Tensor | None
    word_own: Tensor | None
    word_source: Tensor | None
    self_sum: Tensor | None
    word_sum: Tensor
    token_sum: Tensor | None = None

    def clear(self) -> None:
        """Start a new step."""
        self.word_sum.zero_()
        if self.token_sum is not None:
            self.token_sum.zero_()
        if self.self_sum is not None:
            self.self_sum.zero_()

    def add_self(self, query_RLHD: Tensor, key_RMHD: Tensor, scale: float) -> None:
        """Add one layer's self-attention weights. Head by head: a whole (Q, H, N, N) would be the largest tensor of the edit."""
        if self.self_sum is None:
            return
        query_QLHD, key_QMHD = query_RLHD[self.rows].float(), key_RMHD[self.rows].float()
        for head in range(query_QLHD.shape[2]):
            logits_QLM = (query_QLHD[:, :, head] * scale) @ key_QMHD[:, :, head].transpose(1, 2)
            self.self_sum.add_(logits_QLM.softmax(dim=-1))

    def add_words(self, query_RLHD: Tensor, key_RMHD: Tensor, scale: float) -> None:
        """Add one layer's text attention to the words, summed over tokens and heads."""
        if self.token_sum is not None:
            self.token_sum.add_(_text_weights(query_RLHD[self.rows], key_RMHD[self.rows], scale).sum(dim=1))
            return
        assert self.word_own is not None
        own_QL = _word_columns(query_RLHD[self.rows], key_RMHD[self.rows], self.word_own, scale)
        if self.word_from is None or self.word_source is None:  # no row takes text attention from another
            self.word_sum.add_(own_QL)
            return
        source_QL = _word_columns(query_RLHD[self.word_from], key_RMHD[self.word_from], self.word_source, scale)
        self.word_sum.add_(own_QL + source_QL)

    def add_joint(
        self, query_RLHD: Tensor, key_RMHD: Tensor, num_text: int, scale: float, *, words: bool, self_map: bool
    ) -> None:
        """Add one layer's joint attention of the picture's queries to text and picture, whose keys stand in this order.

        The text attention is the columns of the text, as they are: what is left of the softmax looks at the picture. The self map is
        that rest, each row over its own mass, so that its rows sum to 1 as those of self-attention do. Head by head, as `add_self`.
        """
        assert self.word_own is not None and self.word_from is None
        query_QLHD, key_QMHD = query_RLHD[self.rows].float(), key_RMHD[self.rows].float()
        for head in range(query_QLHD.shape[2]):
            logits_QLM = (query_QLHD[:, :, head] * scale) @ key_QMHD[:, :, head].transpose(1, 2)
            weights_QLM = logits_QLM.softmax(dim=-1)
            if words and self.token_sum is not None:
                self.token_sum.add_(weights_QLM[..., :num_text])
            elif words:
                self.word_sum.add_(torch.einsum("qlm,qm->ql", weights_QLM[..., :num_text], self.word_own))
            if self_map and self.self_sum is not None:
                own_QLN = weights_QLM[..., num_text:]
                self.self_sum.add_(own_QLN / own_QLN.sum(dim=-1, keepdim=True))


def _word_columns(query_QLHD: Tensor, key_QMHD: Tensor, weight_QM: Tensor, scale: float) -> Tensor:
    return torch.einsum("qhlm,qm->ql", _text_weights(query_QLHD, key_QMHD, scale), weight_QM)


def _text_weights(query_QLHD: Tensor, key_QMHD: Tensor, scale: float) -> Tensor:
    logits_QHLM = (query_QLHD.float() * scale).transpose(1, 2) @ key_QMHD.float().permute(0, 2, 3, 1)
    return logits_QHLM.softmax(dim=-1)
