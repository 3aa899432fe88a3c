from __future__ import annotations

import io
import uuid
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.records.types import UnwritableType, common_type, to_written, written_type

UUIDS = [uuid.UUID(int=number).bytes for number in (3, 5)]
TENSORS = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(8.0).reshape(2, 2, 2))


def map_of(values: list[Any]) -> pa.Array:
    return pa.array(values, pa.map_(pa.string(), pa.int32()))


@pytest.mark.parametrize(
    ("column", "kind", "values"),
    [
        (pa.array(["a", None], pa.string_view()), pa.large_string(), ["a", None]),
        (pa.array([b"a", None], pa.binary_view()), pa.large_binary(), [b"a", None]),
        (pa.array([b"abcd", None], pa.binary(4)), pa.binary(), [b"abcd", None]),
        (pa.array(["a", "b", None]).dictionary_encode(), pa.string(), ["a", "b", None]),
        (pa.array([["a"], None], pa.list_(pa.dictionary(pa.int8(), pa.string()))), pa.list_(pa.string()), [["a"], None]),
        (pa.array(UUIDS, pa.uuid()), pa.binary(), UUIDS),
        (pa.ListArray.from_arrays([0, 2], pa.array(UUIDS, pa.uuid())), pa.list_(pa.binary()), [UUIDS]),
        (TENSORS, pa.list_(pa.float64(), 4), [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (pa.array(["{}"], pa.json_()), pa.string(), ["{}"]),
        (pa.array([Decimal("1.25")], pa.decimal32(5, 2)), pa.decimal128(5, 2), [Decimal("1.25")]),
        (
            map_of([[("a", 1), ("b", 2)], None]),
            pa.list_(pa.struct([("key", pa.string()), ("value", pa.int32())])),
            [[{"key": "a", "value": 1}, {"key": "b", "value": 2}], None],
        ),
        (pa.array([[1, 2], None, [], [3]], pa.list_view(pa.int8())), pa.list_(pa.int8()), [[1, 2], None, [], [3]]),
        (pa.array([["a"], None], pa.large_list_view(pa.string_view())), pa.large_list(pa.large_string()), [["a"], None]),
        (pa.array([[1, 2], None], pa.list_(pa.int8(), 2)), pa.list_(pa.int8(), 2), [[1, 2], None]),
        (
            pa.array([{"x": 1}], pa.struct([pa.field("x", pa.int8(), nullable=False)])),
            pa.struct([("x", pa.int8())]),
            [{"x": 1}],
        ),
    ],
)
def test_columns_are_written_in_types_that_keep_every_value(column: pa.Array, kind: pa.DataType, values: list[Any]) -> None:
    assert written_type(column.type) == kind
    written = to_written(column, kind)
    assert written.to_pylist() == values
    assert to_written(column.slice(1), kind).to_pylist() == values[1:]
    order = list(reversed(range(len(values))))
    taken = pa.table({"x": written}).take(pa.array(order, pa.int64()))
    buffer = io.BytesIO()
    pq.write_table(taken, buffer)
    assert pq.read_table(buffer).column("x").to_pylist() == [values[place] for place in order]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.list_view(pa.int8())),
        pa.struct([("x", pa.int8()), ("x", pa.int8())]),
        pa.struct([]),
        pa.month_day_nano_interval(),
        pa.run_end_encoded(pa.int32(), pa.string()),
        pa.sparse_union([pa.field("x", pa.int8())]),
    ],
)
def test_types_that_cannot_be_written_are_refused(kind: pa.DataType) -> None:
    with pytest.raises(UnwritableType):
        written_type(kind)


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [
        (pa.null(), pa.list_(pa.int8()), pa.list_(pa.int8())),
        (pa.int8(), pa.int64(), pa.int64()),
        (pa.uint8(), pa.uint32(), pa.uint32()),
        (pa.uint8(), pa.int8(), pa.int16()),
        (pa.uint32(), pa.int8(), pa.int64()),
        (pa.int8(), pa.float16(), pa.float16()),
        (pa.int16(), pa.float16(), pa.float32()),
        (pa.int32(), pa.float32(), pa.float64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.binary(), pa.large_binary(), pa.large_binary()),
        (pa.decimal128(5, 2), pa.decimal128(7, 3), pa.decimal128(7, 3)),
        (pa.decimal128(38, 2), pa.decimal128(38, 10), pa.decimal256(46, 10)),
        (pa.list_(pa.int8()), pa.large_list(pa.int16()), pa.large_list(pa.int16())),
        (pa.list_(pa.int8(), 2), pa.list_(pa.int16(), 2), pa.list_(pa.int16(), 2)),
        (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 3), pa.list_(pa.int8())),
        (
            pa.struct([("x", pa.int8())]),
            pa.struct([("y", pa.string()), ("x", pa.int16())]),
            pa.struct([("x", pa.int16()), ("y", pa.string())]),
        ),
        (pa.uint64(), pa.int64(), None),
        (pa.int64(), pa.float64(), None),
        (pa.timestamp("us"), pa.timestamp("ns"), None),
        (pa.timestamp("us", tz="UTC"), pa.timestamp("us"), None),
        (pa.date32(), pa.timestamp("us"), None),
        (pa.decimal128(3, 2), pa.int64(), None),
        (pa.decimal256(76, 0), pa.decimal256(76, 76), None),
        (pa.bool_(), pa.int8(), None),
        (pa.string(), pa.binary(), None),
        (pa.list_(pa.int64()), pa.list_(pa.float64()), None),
        (pa.struct([("x", pa.int64())]), pa.struct([("x", pa.float64())]), None),
    ],
)
def test_types_fit_together_where_one_holds_all_values_of_both(
    first: pa.DataType, second: pa.DataType, common: pa.DataType | None
) -> None:
    def same(one: pa.DataType | None, other: pa.DataType | None) -> bool:
        return str(one) == str(other) or one == other

    assert same(common_type(first, second), common)
    if not pa.types.is_struct(first):
        assert same(common_type(second, first), common)
