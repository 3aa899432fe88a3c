"""What the processor can do at best, and what some work asks of one: operations of convolutions, products and attention."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

_SIDE = 2048  # of the matrices
_COPIED = 256 * 2**20  # bytes
_REPEATS = 5


def measure_ceilings(threads: int) -> dict[str, float]:
    """Return the rate of a large matrix product, GFLOP/s, and of a copy (read and write), GB/s; the best of five each."""
    torch.set_num_threads(threads)
    a, b = torch.rand(_SIDE, _SIDE), torch.rand(_SIDE, _SIDE)
    source = torch.rand(_COPIED // 4)
    target = torch.empty_like(source)
    return {
        "matmul_gflops": 2 * _SIDE**3 / _best(lambda: a @ b) / 1e9,
        "copy_gb_s": 2 * _COPIED / _best(lambda: target.copy_(source)) / 1e9,
    }


def _best(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def count_operations(work: Callable[[], object]) -> int:
    """Do the work and return its operations, two for each multiplication with its addition."""
    # The counter does not know the name that attention has on CPUs.
    own = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        work()
    return int(counter.get_total_flops())


def _attention(query: Any, key: Any, value: Any, *others: Any, out_shape: Any = None, **named: Any) -> int:
    count: int = sdpa_flop_count(query, key, value)
    return count
