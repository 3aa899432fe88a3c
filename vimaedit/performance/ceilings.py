"""What the processor can do at best: `python -m vimaedit.performance.ceilings THREADS` prints one line of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

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


if __name__ == "__main__":
    print(json.dumps(measure_ceilings(int(sys.argv[1]))))
