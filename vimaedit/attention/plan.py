"""From per-request windows and text edits to the `AttentionControl` of each step, tensors only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vimaedit.attention.control import AttentionControl
from vimaedit.attention.recorder import MapRecorder
from vimaedit.config import Windows
from vimaedit.rows import RowKind, RowLayout


@dataclass(frozen=True, eq=False)
class TextEdit:
    """How the target's text attention follows the source's while the text window is open: P_edit = P_s fold + P_own diag(keep).

    Shapes: `fold` (B, T, T), `keep` (B, T), `words` (2, B, T) = tokens of the blend phrases, source first; float32.
    """

    fold: Tensor
    keep: Tensor
    words: Tensor


class InjectionPlan:
    """What attention does at every step of one batch. Everything is on the device before the loop starts."""

    def __init__(
        self,
        *,
        layout: RowLayout,
        steps: int,
        windows: Sequence[Windows],
        image_strength: Sequence[float],
        text_edit: TextEdit,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        source, target = layout.indices(RowKind.SOURCE_COND), layout.indices(RowKind.TARGET_COND)
        ends = {
            "self": [int(w.self * steps) for w in windows],
            "image": [int(w.image * steps) for w in windows],
            "text": [int(w.text * (steps + 1)) for w in windows],
        }
        step_S1 = torch.arange(steps)[:, None]
        open_SB = {name: step_S1 < torch.tensor(end_B)[None, :] for name, end_B in ends.items()}

        def routes(name: str) -> Tensor:
            rows_SR = torch.arange(layout.num_rows).repeat(steps, 1)
            rows_SR[:, target] = torch.where(open_SB[name], source, target)
            return rows_SR.to(device)

        self.self_from_SR = routes("self")
        self.image_from_SR = routes("image")
        self.text_open_SB = open_SB["text"].to(device)
        self.source_rows = source.to(device)
        self.target_rows = target.to(device)
        strength_B = torch.tensor(image_strength, dtype=dtype)
        self.image_scale_R = layout.arrange(dict.fromkeys(RowKind, strength_B)).to(device)
        self.text_edit = TextEdit(*(t.to(device) for t in (text_edit.fold, text_edit.keep, text_edit.words)))
        self.num_rows = layout.num_rows
        self.dtype = dtype

    def control(self, i: int, buffers: MapBuffers | None) -> AttentionControl:
        """Build the control of step i; with buffers the step's attention weights are recorded into them."""
        open_B = self.text_open_SB[i]
        fold_BTT = self.text_edit.fold * open_B[:, None, None]
        keep_BT = torch.where(open_B[:, None], self.text_edit.keep, torch.ones_like(self.text_edit.keep))
        keep_RT = torch.ones(self.num_rows, keep_BT.shape[1], device=keep_BT.device)
        keep_RT[self.target_rows] = keep_BT
        return AttentionControl(
            self_from=self.self_from_SR[i],
            image_from=self.image_from_SR[i],
            image_scale=self.image_scale_R,
            text_rows=self.target_rows,
            text_from=self.source_rows,
            text_fold=fold_BTT.to(self.dtype),
            text_keep=keep_RT.to(self.dtype),
            recorder=None if buffers is None else self._recorder(fold_BTT, keep_BT, buffers),
        )

    def _recorder(self, fold_BTT: Tensor, keep_BT: Tensor, buffers: MapBuffers) -> MapRecorder:
        source_words_BT, target_words_BT = self.text_edit.words
        folded_words_BT = torch.einsum("bst,bt->bs", fold_BTT, target_words_BT)
        recorder = MapRecorder(
            rows=torch.cat([self.source_rows, self.target_rows]),
            word_from=torch.cat([self.source_rows, self.source_rows]),
            word_own=torch.cat([source_words_BT, keep_BT * target_words_BT]),
            word_source=torch.cat([torch.zeros_like(folded_words_BT), folded_words_BT]),
            self_sum=buffers.self_sum,
            word_sum=buffers.word_sum,
        )
        recorder.clear()
        return recorder


@dataclass(frozen=True, eq=False)
class MapBuffers:
    """Where a step's attention weights are summed, allocated once per batch.

    Shapes: `self_sum` (2 B, N, N) or None, `word_sum` (2 B, n), float32; `self_layers`, `word_layers`: how many (layer, head)
    pairs each sum holds.
    """

    self_sum: Tensor | None
    word_sum: Tensor
    self_layers: int
    word_layers: int

    def self_map(self) -> Tensor | None:
        """Return the mean self-attention map, (2 B, N, N)."""
        return None if self.self_sum is None else self.self_sum / self.self_layers

    def word_map(self) -> Tensor:
        """Return the word map, mean over heads and layers of the sum over tokens, (2 B, n)."""
        return self.word_sum / self.word_layers
