"""From per-request windows and text edits to the `AttentionControl` of each step, tensors only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vimaedit.attention.control import AttentionControl
from vimaedit.attention.recorder import MapRecorder
from vimaedit.attention.routing import Routes, layout_of_step, open_to_text, open_windows, route_rows, shared_steps
from vimaedit.config import EditConfig, Windows
from vimaedit.step.rows import RowKind, RowLayout


@dataclass(frozen=True, eq=False)
class TextEdit:
    """How the target's text attention follows the source's while the text window is open: P_edit = P_s fold + P_own diag(keep).

    Shapes: `fold` (B, T, T), `keep` (B, T), `words` (2, B, T) = tokens of the blend phrases, source first; float32. `shares` (B, T)
    float64: how long the window of a target's token is open, below 0: as the request's; None: all are.
    """

    fold: Tensor
    keep: Tensor
    words: Tensor
    shares: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Rows:
    """What a step's rows are, and where they look, for one of the layouts that a run has. Everything on the device."""

    layout: RowLayout
    routes: Routes
    image_scale: Tensor
    target: Tensor
    source: Tensor | None
    text_from: Tensor | None
    apart: Tensor | None
    apart_of: Tensor | None


class Injection:
    """What attention does at every step of one batch. Everything is on the device before the loop starts."""

    def __init__(
        self,
        *,
        layout: RowLayout,
        config: EditConfig,
        steps: int,
        windows: Sequence[Windows],
        image_strength: Sequence[float],
        text_edit: TextEdit,
        concept_words: Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
        edits_text: bool = True,
    ) -> None:
        """`edits_text`: whether the target's text attention follows the source's while the window is open."""
        self.config = config
        self.edits_text = edits_text
        self.device = device
        self.dtype = dtype
        open_SB = open_windows(config, windows, steps)
        text_open = open_SB["text"][..., None]
        if text_edit.shares is not None:
            shares_BT = text_edit.shares.cpu()
            text_open = torch.where(shares_BT < 0, text_open, open_to_text(config, shares_BT, steps))
        self.text_open = text_open.to(device)  # (S, B, 1), or (S, B, T) where words have windows of their own
        num_shared = shared_steps(config, steps)
        num_guided = int(config.guidance_end * steps)
        self.layouts = [
            layout_of_step(layout, config, open_SB["self"][i], shares=i < num_shared, guides=i < num_guided)
            for i in range(steps)
        ]
        strength_B = torch.tensor(image_strength, dtype=dtype)
        self._rows = {each: self._place(each, open_SB, strength_B) for each in dict.fromkeys(self.layouts)}
        self.text_edit = TextEdit(*(t.to(device) for t in (text_edit.fold, text_edit.keep, text_edit.words)))
        self.concept_words = None if concept_words is None else concept_words.to(device)

    def _place(self, layout: RowLayout, open_SB: dict[str, Tensor], strength_B: Tensor) -> _Rows:
        source = layout.indices(RowKind.SOURCE_COND) if RowKind.SOURCE_COND in layout.kinds else None
        follows = RowKind.AUXILIARY_COND in layout.kinds and self.config.auxiliary.text_from == "auxiliary"
        text_from = layout.indices(RowKind.AUXILIARY_COND) if follows else source
        # Where latents are moved by the attention, a branch's rows do not even see the same ones.
        apart, apart_of = (None, None) if self.config.parts.keeps_attention else layout.apart() or (None, None)
        return _Rows(
            layout=layout,
            routes=route_rows(layout, self.config.parts, open_SB, self.device),
            image_scale=layout.arrange(dict.fromkeys(layout.kinds, strength_B)).to(self.device),
            target=layout.indices(RowKind.TARGET_COND).to(self.device),
            source=None if source is None else source.to(self.device),
            text_from=None if text_from is None else text_from.to(self.device),
            apart=None if apart is None else apart.to(self.device),
            apart_of=None if apart_of is None else apart_of.to(self.device),
        )

    def control(self, i: int, buffers: MapBuffers | None) -> AttentionControl:
        """Build the control of step i; with buffers the step's attention weights are recorded into them."""
        rows = self._rows[self.layouts[i]]
        routes = rows.routes
        fold_BTT = keep_RT = recorder = None
        if self.edits_text:
            open_BT = self.text_open[i]
            fold_BTT = self.text_edit.fold * open_BT[:, None, :]
            keep_BT = torch.where(open_BT, self.text_edit.keep, torch.ones_like(self.text_edit.keep))
            keep_RT = torch.ones(rows.layout.num_rows, keep_BT.shape[1], device=keep_BT.device)
            keep_RT[rows.target] = keep_BT
            if buffers is not None:
                recorder = self._recorder(rows, fold_BTT, keep_BT, buffers)
        elif buffers is not None:
            recorder = self._recorder(rows, None, None, buffers)
        return AttentionControl(
            self_from=_at(routes.queries, i),
            image_from=_at(routes.image, i),
            image_scale=rows.image_scale,
            text_rows=rows.target if self.edits_text else None,
            text_from=rows.text_from,
            text_fold=None if fold_BTT is None else fold_BTT.to(self.dtype),
            text_keep=None if keep_RT is None else keep_RT.to(self.dtype),
            recorder=recorder,
            self_keys_from=_at(routes.keys, i),
            self_values_from=_at(routes.values, i),
            features_from=_at(routes.features, i),
            apart=rows.apart,
            apart_of=rows.apart_of,
        )

    def _recorder(self, rows: _Rows, fold_BTT: Tensor | None, keep_BT: Tensor | None, buffers: MapBuffers) -> MapRecorder:
        """Record what the method grounds by: the concepts' own rows, every branch token by token, or the words of both branches."""
        if self.concept_words is not None:
            kinds = [kind for kind in rows.layout.kinds if kind.conditional and kind.branch == RowKind.TARGET_COND.branch]
            own = torch.cat([rows.layout.indices(kind) for kind in kinds]).to(self.device)
            recorder = MapRecorder(own, None, self.concept_words.flatten(0, 1), None, None, buffers.word_sum)
        elif buffers.token_sum is not None:
            assert rows.source is not None
            has_auxiliary = RowKind.AUXILIARY_COND in rows.layout.kinds
            third = rows.layout.indices(RowKind.AUXILIARY_COND).to(self.device) if has_auxiliary else rows.source
            branches = torch.cat([rows.source, rows.target, third])
            recorder = MapRecorder(branches, None, None, None, None, buffers.word_sum, buffers.token_sum)
        else:
            assert rows.source is not None
            source_words_BT, target_words_BT = self.text_edit.words
            folded_words_BT = own_words_BT = None
            if fold_BTT is not None and keep_BT is not None:
                folded_words_BT = torch.einsum("bst,bt->bs", fold_BTT, target_words_BT)
                own_words_BT = keep_BT * target_words_BT
            recorder = MapRecorder(
                rows=torch.cat([rows.source, rows.target]),
                word_from=None if folded_words_BT is None else torch.cat([rows.source, rows.source]),
                word_own=torch.cat([source_words_BT, target_words_BT if own_words_BT is None else own_words_BT]),
                word_source=None
                if folded_words_BT is None
                else torch.cat([torch.zeros_like(folded_words_BT), folded_words_BT]),
                self_sum=buffers.self_sum,
                word_sum=buffers.word_sum,
            )
        recorder.clear()
        return recorder


@dataclass(frozen=True, eq=False)
class MapBuffers:
    """Where a step's attention weights are summed, allocated once per batch.

    Shapes: `self_sum` (2 B, N, N) or None, `word_sum` (Q, n), `token_sum` (3 B, n, T) or None, float32; `self_layers`,
    `word_layers`: how many (layer, head) pairs each sum holds. Q = 2 B, sources first, or one row per concept.
    """

    self_sum: Tensor | None
    word_sum: Tensor
    self_layers: int
    word_layers: int
    token_sum: Tensor | None = None

    def self_map(self) -> Tensor | None:
        """Return the mean self-attention map, (2 B, N, N)."""
        return None if self.self_sum is None else self.self_sum / self.self_layers

    def word_map(self) -> Tensor:
        """Return the word map, mean over heads and layers of the sum over tokens, (Q, n)."""
        return self.word_sum / self.word_layers

    def token_map(self) -> Tensor:
        """Return the text maps, mean over heads and layers, (3 B, n, T)."""
        assert self.token_sum is not None
        return self.token_sum / self.word_layers


def _at(rows_SR: Tensor | None, i: int) -> Tensor | None:
    return None if rows_SR is None else rows_SR[i]
