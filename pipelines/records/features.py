"""Arrow types as Hugging Face features: what `datasets` is told of the output's columns."""

from __future__ import annotations

import json
import re
from typing import Any

import pyarrow as pa
import pyarrow.types as kinds

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
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
