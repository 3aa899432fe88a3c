"""What the rows of a pass are conditioned on: tensors by name, which a model's family makes and reads. All others pick rows of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vimaedit.attention.processor import LayerContext


@dataclass(frozen=True, eq=False)
class Conditioning:
    """R rows of what a pass is conditioned on. `contexts`: what the layers make of it, by processor; None: made in every pass.

    `tensors` have R rows each. Whatever the family, `text` (R, T, E) are the states that attention to text reads, and `image`
    (R, 1, E), where there is an image prompt, the embedding of a picture; what else there is, the family's file says.
    """

    tensors: Mapping[str, Tensor]
    contexts: dict[str, LayerContext] | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __len__(self) -> int:
        return len(self.tensors["text"])

    def each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """Change every tensor."""
        return Conditioning({name: change(tensor) for name, tensor in self.tensors.items()})

    def rows(self, which: Tensor | slice) -> Conditioning:
        """Pick rows, by number or as a slice."""
        return self.each(lambda tensor: tensor[which])

    def having(self, **tensors: Tensor) -> Conditioning:
        """Return the same with other tensors under these names."""
        return dataclasses.replace(self, tensors={**self.tensors, **tensors}, contexts=None)


def stack_rows(parts: Sequence[Conditioning]) -> Conditioning:
    """Put rows below each other."""
    return Conditioning({name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors})
