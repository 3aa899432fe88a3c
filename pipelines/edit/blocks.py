"""A unit on its way through the stages, as a block of Ray Data."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.output.plan import Unit
from pipelines.records.row import Row
from pipelines.records.scan import InputFile
from vimaedit.types import BoolArray, UInt8Array


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitRows:
    """The requests of one unit in order, and the passed-through columns (one row each)."""

    unit: Unit
    file: InputFile
    rows: Sequence[Row]
    passed: pa.Table


class _Pickler(pickle.Pickler):
    """Lets masks travel as bits, an eighth of their size; arrays that several rows share travel once in any case."""

    def reducer_override(self, value: object) -> tuple[Callable[..., Any], tuple[Any, ...]] | Any:
        if isinstance(value, np.ndarray) and value.dtype == np.bool_:
            return _unpack, (np.packbits(value), value.shape)
        return NotImplemented


def _unpack(bits: UInt8Array, shape: tuple[int, ...]) -> BoolArray:
    return np.unpackbits(bits, count=math.prod(shape)).view(np.bool_).reshape(shape)


def to_block(unit_rows: UnitRows) -> pa.Table:
    """Pack a unit as a block of a single row, so that no engine can split, merge or re-batch it."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(unit_rows)
    payload = buffer.getbuffer()
    ends = pa.py_buffer(np.array([0, len(payload)], dtype=np.int64))
    column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(payload)])  # without a copy
    return pa.table({"unit": [unit_rows.unit.id], "payload": column})


def from_block(block: pa.Table) -> list[UnitRows]:
    """Unpack the units of a block."""
    return [pickle.loads(value.as_buffer()) for value in block.column("payload")]
