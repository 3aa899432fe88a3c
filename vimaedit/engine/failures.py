"""What an exception of an editor says: a request that cannot be edited, too little memory, or a device that is lost."""

from __future__ import annotations

import gc
from dataclasses import dataclass

# How allocators say that there is no memory where they have no exception of its own for it.
NO_MEMORY_TEXTS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An exception without its traceback, whose frames would hold on to a batch's tensors."""

    type: str
    text: str
    out_of_memory: bool


def describe(error: Exception) -> Failure:
    """Keep what is to be said of an exception."""
    import torch

    out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY_TEXTS)
    )
    return Failure(type=type(error).__name__, text=str(error) or type(error).__name__, out_of_memory=out_of_memory)


def free_memory() -> None:
    """Give back what earlier work left in the allocators' caches."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def device_error() -> str | None:
    """What the GPU answers to the smallest of calls, None where it works: some errors leave nothing usable in the process."""
    import torch

    if not torch.cuda.is_initialized():
        return None
    try:
        torch.zeros(1, device="cuda").add_(1).item()
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return None
