"""Which row of the UNet batch is whose: (request, branch, with or without text), and what each row is given.

The batch is laid out in blocks of B rows, one block per kind, in the order of `RowLayout.kinds`. Row r of a block belongs to
request r. Where K requests share their source's rows, a block of the source has B / K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vimaedit.config import EditConfig
from vimaedit.errors import ConfigError

SOURCE, TARGET, AUXILIARY = 0, 1, 2  # index of a branch in (2 or 3, B, ...) tensors


@dataclass(frozen=True)
class RowKind:
    """One block of rows: its branch, whether it is conditioned on text, and which of several concepts it stands for."""

    branch: int
    conditional: bool
    concept: int = 0

    SOURCE_UNCOND: ClassVar[RowKind]
    TARGET_UNCOND: ClassVar[RowKind]
    AUXILIARY_UNCOND: ClassVar[RowKind]
    SOURCE_COND: ClassVar[RowKind]
    TARGET_COND: ClassVar[RowKind]
    AUXILIARY_COND: ClassVar[RowKind]


RowKind.SOURCE_UNCOND = RowKind(SOURCE, False)
RowKind.TARGET_UNCOND = RowKind(TARGET, False)
RowKind.AUXILIARY_UNCOND = RowKind(AUXILIARY, False)
RowKind.SOURCE_COND = RowKind(SOURCE, True)
RowKind.TARGET_COND = RowKind(TARGET, True)
RowKind.AUXILIARY_COND = RowKind(AUXILIARY, True)


@dataclass(frozen=True)
class RowLayout:
    """The rows of a batch of `num_requests` edits, one block per kind; `shared` consecutive edits have one source row of a kind."""

    num_requests: int
    kinds: tuple[RowKind, ...]
    shared: int = 1

    @property
    def num_rows(self) -> int:
        return sum(self.num_requests // self._edits_of_row(kind) for kind in self.kinds)

    def block(self, kind: RowKind) -> slice:
        """Return the rows of one kind."""
        before = self.kinds[: self.kinds.index(kind)]
        start = sum(self.num_requests // self._edits_of_row(each) for each in before)
        return slice(start, start + self.num_requests // self._edits_of_row(kind))

    def indices(self, kind: RowKind) -> Tensor:
        """Return the row number of every request for one kind, (B,) int64."""
        block = self.block(kind)
        return torch.arange(block.start, block.stop).repeat_interleave(self._edits_of_row(kind))

    def of_kind(self, rows_R: Tensor, kind: RowKind) -> Tensor:
        """Give every request its row of one kind: (R, ...) -> (B, ...)."""
        rows = rows_R[self.block(kind)]
        count = self._edits_of_row(kind)
        return rows if count == 1 else rows.repeat_interleave(count, dim=0)

    def expand(self, branches: Tensor) -> Tensor:
        """Give every row its branch's value: (branches, B, ...) -> (R, ...)."""
        return torch.cat([branches[kind.branch][:: self._edits_of_row(kind)] for kind in self.kinds])

    def arrange(self, per_kind: dict[RowKind, Tensor]) -> Tensor:
        """Stack one (B, ...) tensor per kind in row order -> (R, ...)."""
        return torch.cat([per_kind[kind][:: self._edits_of_row(kind)] for kind in self.kinds])

    def apart(self) -> tuple[Tensor, Tensor] | None:
        """Return the rows that differ where nothing but the latents is known, (U,), and which of these each row equals, (R,) int64.

        Rows of one branch do not differ. None where there is one row of each branch.
        """
        first: dict[int, RowKind] = {}
        for kind in self.kinds:
            first.setdefault(kind.branch, kind)
        if len(first) == len(self.kinds):
            return None
        rows = [torch.arange(self.num_rows)[self.block(kind)] for kind in first.values()]
        place = torch.empty(self.num_rows, dtype=torch.int64)
        place[torch.cat(rows)] = torch.arange(sum(len(each) for each in rows))
        return torch.cat(rows), torch.cat([place[self.block(first[kind.branch])] for kind in self.kinds])

    def _edits_of_row(self, kind: RowKind) -> int:
        return self.shared if kind.branch == SOURCE else 1


def shared_edits(config: EditConfig, num_requests: int) -> int:
    """Return how many consecutive edits of a batch have one source; in a smaller batch than the run's it may be fewer."""
    return math.gcd(config.targets_per_source, num_requests)


def edit_layout(num_requests: int, config: EditConfig, num_concepts: int = 1, *, guides: bool = True) -> RowLayout:
    """Return the rows that edits of a configuration need at some step, without those that nothing reads.

    A source with guidance 1 has no unconditional rows: they would be multiplied by zero (three rows per edit instead of four).
    A source whose latents are looked up needs no prediction, only rows that are read by the target's. `guides` False: nothing is guided
    by unconditional rows.
    """
    parts = config.parts
    if parts.guidance == "difference":
        return RowLayout(num_requests, (RowKind.SOURCE_COND, RowKind.TARGET_COND))
    if parts.midpoint != "none":
        both = (RowKind.TARGET_UNCOND, RowKind.TARGET_COND)
        return RowLayout(num_requests, both if guides else both[1:])
    is_read = parts.routing != "none" or parts.edits_text or parts.copies_features
    is_read = is_read or (config.reads_words and parts.guidance != "concepts")
    kinds: list[RowKind] = []
    if parts.has_auxiliary or (parts.guides_source and config.source_guidance != 1):
        kinds.append(RowKind.SOURCE_UNCOND)
    kinds.append(RowKind.TARGET_UNCOND)
    if parts.has_auxiliary and config.source_guidance != 1:
        kinds.append(RowKind.AUXILIARY_UNCOND)
    if is_read or (parts.guides_source and (config.source_guidance != 0 or not guides)):
        kinds.append(RowKind.SOURCE_COND)
    kinds += [RowKind(TARGET, True, number) for number in range(num_concepts)]
    if parts.has_auxiliary:
        kinds.append(RowKind.AUXILIARY_COND)
    return RowLayout(num_requests, tuple(kind for kind in kinds if guides or kind.conditional))


def image_embedding_rows(layout: RowLayout, source_BE: Tensor, target_BE: Tensor, order: str) -> Tensor:
    """Choose the image embedding that each row sees, before the IP-Adapter's projection, (R, E).

    `conventional`: the conditional rows see their own picture, the unconditional ones zeros.
    Reference: the released program hands the embeddings over in another order than its rows, so that the target's
    unconditional row sees the source and the source's conditional row sees zeros; `reference` reproduces it.
    """
    zeros_BE = torch.zeros_like(source_BE)
    if order == "reference":
        target_uncond_BE, source_cond_BE = source_BE, zeros_BE
    elif order == "conventional":
        target_uncond_BE, source_cond_BE = zeros_BE, source_BE
    else:
        raise ConfigError(f"image_order: got {order!r}; allowed: reference, conventional")
    free = {SOURCE: zeros_BE, TARGET: target_uncond_BE, AUXILIARY: zeros_BE}
    conditional = {SOURCE: source_cond_BE, TARGET: target_BE, AUXILIARY: source_cond_BE}
    return layout.arrange({kind: (conditional if kind.conditional else free)[kind.branch] for kind in layout.kinds})
