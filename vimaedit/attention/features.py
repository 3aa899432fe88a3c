"""Features of one convolution handed from row to row, for Plug-and-Play."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def copied_features(layer: nn.Module | None, features_from: Tensor | None) -> Iterator[None]:
    """Give every row the output that `layer` has for the row in `features_from` (R,), for as long as the context lasts."""
    if layer is None or features_from is None:
        yield
        return

    def copy(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output[features_from]

    handle = layer.register_forward_hook(copy)
    try:
        yield
    finally:
        handle.remove()
