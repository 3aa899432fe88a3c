"""Which row of the UNet batch is whose: (request, branch, with or without text), and what each row is given.

The batch is laid out in blocks of B rows, one block per kind, in the order of `RowLayout.kinds`. Row r of a block belongs to
request r.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from vimaedit.errors import ConfigError

SOURCE, TARGET = 0, 1  # index of a branch in (2, B, ...) tensors


class RowKind(Enum):
    """One block of rows: its branch, and whether it is conditioned on text."""

    SOURCE_UNCOND = (SOURCE, False)
    TARGET_UNCOND = (TARGET, False)
    SOURCE_COND = (SOURCE, True)
    TARGET_COND = (TARGET, True)

    @property
    def branch(self) -> int:
        return self.value[0]

    @property
    def conditional(self) -> bool:
        return self.value[1]


@dataclass(frozen=True)
class RowLayout:
    """The rows of a batch of `num_requests` edits.

    The source's unconditional rows exist only when the source is guided: with guidance 1 they would be multiplied by zero
    (three rows per edit instead of four).
    """

    num_requests: int
    source_guided: bool

    @property
    def kinds(self) -> tuple[RowKind, ...]:
        unguided = (RowKind.TARGET_UNCOND, RowKind.SOURCE_COND, RowKind.TARGET_COND)
        return (RowKind.SOURCE_UNCOND, *unguided) if self.source_guided else unguided

    @property
    def num_rows(self) -> int:
        return len(self.kinds) * self.num_requests

    def block(self, kind: RowKind) -> slice:
        """Return the rows of one kind."""
        start = self.kinds.index(kind) * self.num_requests
        return slice(start, start + self.num_requests)

    def indices(self, kind: RowKind) -> Tensor:
        """Return the row numbers of one kind, (B,) int64."""
        block = self.block(kind)
        return torch.arange(block.start, block.stop)

    def expand(self, branches: Tensor) -> Tensor:
        """Give every row its branch's value: (2, B, ...) -> (R, ...)."""
        return torch.cat([branches[kind.branch] for kind in self.kinds])

    def arrange(self, per_kind: dict[RowKind, Tensor]) -> Tensor:
        """Stack one (B, ...) tensor per kind in row order -> (R, ...)."""
        return torch.cat([per_kind[kind] for kind in self.kinds])


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
    return layout.arrange(
        {
            RowKind.SOURCE_UNCOND: zeros_BE,
            RowKind.TARGET_UNCOND: target_uncond_BE,
            RowKind.SOURCE_COND: source_cond_BE,
            RowKind.TARGET_COND: target_BE,
        }
    )
