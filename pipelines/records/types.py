"""Types of columns: which one is written, which one holds those of all files without loss, and what `datasets` is told of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from vimaedit.errors import VimaeditError

FLOATS = (pa.float16(), pa.float32(), pa.float64())
SIGNED_INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64())
MANTISSA_BITS = {16: 11, 32: 24, 64: 53}  # of the floating-point types: integers of so many bits are exact in them
MAX_DECIMAL128, MAX_DECIMAL256 = 38, 76  # digits

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BLEND_WORDS = pa.list_(pa.struct([("source", pa.string()), ("target", pa.string())]))
NAMED_TYPES = {
    **{kind: str(kind) for kind in (pa.null(), pa.bool_(), pa.string(), pa.large_string(), pa.binary(), pa.large_binary())},
    **{kind: str(kind) for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{kind: str(kind) for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    **{pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64"},
    **{pa.date32(): "date32", pa.date64(): "date64"},
}
PARAMETRIC_NAMES = re.compile(
    r"time32\[(s|ms)\]|time64\[(us|ns)\]|(timestamp|duration)\[(s|ms|us|ns)\]|timestamp\[(s|ms|us|ns), tz=[\w/+:-]+\]"
    r"|decimal128\(\d+, -?\d+\)"
)
LIST_FEATURES = frozenset({"List", "LargeList", "Sequence"})


class UnwritableType(VimaeditError):
    """A type that no Parquet column can take, or none that can be converted to one."""


def is_list_type(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists."""
    return bool(kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind) or is_list_view(kind))


def is_list_view(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists as views."""
    return bool(kinds.is_list_view(kind) or kinds.is_large_list_view(kind))


def written_type(kind: pa.DataType, *, nested: bool = False) -> pa.DataType:
    """Choose the type in which a column is written: without loss, and one that rows can be taken from and many readers know.

    Dictionaries are decoded, views become large types, maps lists of {key, value}, fixed-size binaries binaries, extension
    types (uuid, tensors) what they are stored as.

    Raises: UnwritableType.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return written_type(kind.storage_type, nested=nested)
    if kinds.is_dictionary(kind):
        return written_type(kind.value_type, nested=nested)
    if kinds.is_string_view(kind):
        return pa.large_string()
    if kinds.is_binary_view(kind):
        return pa.large_binary()
    if kinds.is_fixed_size_binary(kind):
        return pa.binary()
    if kinds.is_decimal32(kind) or kinds.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
    if kinds.is_map(kind):
        names_and_types = [("key", kind.key_type), ("value", kind.item_type)]
        return pa.list_(pa.struct([(name, written_type(inner, nested=True)) for name, inner in names_and_types]))
    if kinds.is_struct(kind):
        names = [field.name for field in kind]
        if not names or len(set(names)) < len(names):
            raise UnwritableType(str(kind))
        return pa.struct([(field.name, written_type(field.type, nested=True)) for field in kind])
    if is_list_view(kind) and nested:  # Arrow (26) casts them to empty lists; `to_written` converts those of a column itself
        raise UnwritableType(str(kind))
    if is_list_type(kind):
        value = written_type(kind.value_type, nested=True)
        return _list_like(kind, value)
    if kinds.is_union(kind) or kinds.is_run_end_encoded(kind) or kinds.is_interval(kind):
        raise UnwritableType(str(kind))
    return kind


def to_written(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Convert a column to a type that `written_type` or `common_type` gave for it."""
    if is_list_view(column.type):
        column = _lists_of_views(column)
    return column if column.type == kind else column.cast(kind)


def common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Find the type that holds all values of two written types without loss; None where there is none."""
    if first == second or kinds.is_null(second):
        return first
    if kinds.is_null(first):
        return second
    if kinds.is_struct(first) and kinds.is_struct(second):
        return _common_struct(first, second)
    if is_list_type(first) and is_list_type(second):
        value = common_type(first.value_type, second.value_type)
        return None if value is None else _common_list(first, second, value)
    if kinds.is_decimal(first) and kinds.is_decimal(second):
        return _common_decimal(first, second)
    if _is_number(first) and _is_number(second):
        return _common_number(first, second)
    pair = {first, second}
    for small, large in ((pa.string(), pa.large_string()), (pa.binary(), pa.large_binary())):
        if pair == {small, large}:
            return large
    return None


def _list_like(kind: pa.DataType, value: pa.DataType) -> pa.DataType:
    if kinds.is_fixed_size_list(kind):
        return pa.list_(value, kind.list_size)
    is_large = kinds.is_large_list(kind) or kinds.is_large_list_view(kind)
    return pa.large_list(value) if is_large else pa.list_(value)


def _lists_of_views(column: pa.Array) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    ends = pc.cumulative_sum(lengths.cast(pa.int64()))
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), ends])
    lists = pa.LargeListArray.from_arrays(offsets, pc.list_flatten(column), mask=column.is_null())
    return lists.cast(_list_like(column.type, column.type.value_type))


def _common_struct(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    fields = {field.name: field.type for field in first}
    for field in second:
        kind = common_type(fields.get(field.name, pa.null()), field.type)
        if kind is None:
            return None
        fields[field.name] = kind
    return pa.struct(list(fields.items()))


def _common_list(first: pa.DataType, second: pa.DataType, value: pa.DataType) -> pa.DataType:
    if kinds.is_fixed_size_list(first) and kinds.is_fixed_size_list(second) and first.list_size == second.list_size:
        return pa.list_(value, first.list_size)
    is_large = kinds.is_large_list(first) or kinds.is_large_list(second)
    return pa.large_list(value) if is_large else pa.list_(value)


def _common_decimal(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    scale = max(first.scale, second.scale)
    digits = scale + max(first.precision - first.scale, second.precision - second.scale)
    if digits <= MAX_DECIMAL128 and kinds.is_decimal128(first) and kinds.is_decimal128(second):
        return pa.decimal128(digits, scale)
    return pa.decimal256(digits, scale) if digits <= MAX_DECIMAL256 else None


def _is_number(kind: pa.DataType) -> bool:
    return bool(kinds.is_integer(kind) or kinds.is_floating(kind))


def _common_number(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Find the smallest number type that holds all values of two others exactly."""
    floats = [kind for kind in (first, second) if kinds.is_floating(kind)]
    integers = [kind for kind in (first, second) if kinds.is_integer(kind)]
    if floats:
        bits = [MANTISSA_BITS[kind.bit_width] for kind in floats] + [_value_bits(kind) for kind in integers]
        return next((kind for kind in FLOATS if MANTISSA_BITS[kind.bit_width] >= max(bits)), None)
    value_bits = max(_value_bits(kind) for kind in integers)
    if all(kinds.is_unsigned_integer(kind) for kind in integers):
        return max(integers, key=_value_bits)
    return next((kind for kind in SIGNED_INTEGERS if _value_bits(kind) >= value_bits), None)


def _value_bits(kind: pa.DataType) -> int:
    """Count the bits of an integer type without its sign."""
    return int(kind.bit_width) - (1 if kinds.is_signed_integer(kind) else 0)


def feature_of(kind: pa.DataType) -> Any:
    """Describe an Arrow type as a feature: `{bytes, path}` structs are images. None where `datasets` has no name for it."""
    if kind == IMAGE:
        return {"_type": "Image"}
    if kinds.is_struct(kind):
        inner = {field.name: feature_of(field.type) for field in kind}
        return inner if inner and all(feature is not None for feature in inner.values()) else None
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        value = feature_of(kind.value_type)
        return None if value is None else [value]  # understood by old and new versions of datasets
    name = NAMED_TYPES.get(kind, str(kind))
    return {"dtype": name, "_type": "Value"} if _is_dtype(name) else None


def with_features(
    fields: Sequence[pa.Field], known: Mapping[str, Any] | None = None, metadata: Mapping[bytes, str] | None = None
) -> pa.Schema:
    """Build a schema that tells `datasets` what its columns are; columns for which it has no name have no feature.

    `known`: features that are more telling than the types; `metadata`: what else stands in the schema.
    """
    features = {field.name: feature_of(field.type) for field in fields} | dict(known or {})
    told = {name: feature for name, feature in features.items() if feature is not None}
    return pa.schema(fields, metadata={b"huggingface": json.dumps({"info": {"features": told}}), **(metadata or {})})


def input_features(schema: pa.Schema) -> dict[str, Any]:
    """Read the features that an input file states; those that `datasets` would not understand are left out."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if is_feature(feature)}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):  # the last for thousands of nested brackets
        return {}


def is_feature(value: Any) -> bool:
    """Whether `datasets` would understand a feature that stands in a file's metadata."""
    if isinstance(value, list):
        return len(value) == 1 and is_feature(value[0])
    if not isinstance(value, dict) or not value:
        return False
    kind = value.get("_type")
    if isinstance(kind, dict | list) or kind is None:  # a struct, which may have a field named _type
        return all(is_feature(inner) for inner in value.values())
    if kind == "Value":
        return _is_dtype(value.get("dtype"))
    if kind == "ClassLabel":
        names = value.get("names")
        return isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return kind == "Image" or (kind in LIST_FEATURES and is_feature(value.get("feature")))


def _is_dtype(name: Any) -> bool:
    return isinstance(name, str) and (name in NAMED_TYPES.values() or PARAMETRIC_NAMES.fullmatch(name) is not None)
