from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from pipelines.records.types import IMAGE, feature_of, input_features

VALUE = {"dtype": "int8", "_type": "Value"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (pa.null(), "null"),
        (pa.bool_(), "bool"),
        (pa.int8(), "int8"),
        (pa.int16(), "int16"),
        (pa.int32(), "int32"),
        (pa.int64(), "int64"),
        (pa.uint8(), "uint8"),
        (pa.uint16(), "uint16"),
        (pa.uint32(), "uint32"),
        (pa.uint64(), "uint64"),
        (pa.float16(), "float16"),
        (pa.float32(), "float32"),
        (pa.float64(), "float64"),
        (pa.date32(), "date32"),
        (pa.date64(), "date64"),
        (pa.time32("ms"), "time32[ms]"),
        (pa.time64("ns"), "time64[ns]"),
        (pa.timestamp("s"), "timestamp[s]"),
        (pa.timestamp("us", tz="Europe/Berlin"), "timestamp[us, tz=Europe/Berlin]"),
        (pa.timestamp("us", tz="+01:00"), "timestamp[us, tz=+01:00]"),
        (pa.duration("us"), "duration[us]"),
        (pa.decimal128(5, 2), "decimal128(5, 2)"),
        (pa.string(), "string"),
        (pa.large_string(), "large_string"),
        (pa.binary(), "binary"),
        (pa.large_binary(), "large_binary"),
    ],
)
def test_types_have_the_names_that_datasets_knows(kind: pa.DataType, name: str) -> None:
    value = {"dtype": name, "_type": "Value"}
    assert feature_of(kind) == value
    assert feature_of(pa.list_(kind)) == feature_of(pa.large_list(kind)) == feature_of(pa.list_(kind, 3)) == [value]
    assert feature_of(pa.struct([("x", kind)])) == {"x": value}


@pytest.mark.parametrize(
    "kind",
    [
        pa.string_view(),
        pa.binary_view(),
        pa.binary(4),
        pa.map_(pa.string(), pa.int8()),
        pa.decimal32(5, 2),
        pa.decimal256(50, 2),
        pa.uuid(),
        pa.list_view(pa.int8()),
        pa.dictionary(pa.int8(), pa.string()),
        pa.struct([]),
        pa.month_day_nano_interval(),
    ],
)
def test_types_without_a_name_have_no_feature_nor_has_what_holds_them(kind: pa.DataType) -> None:
    assert feature_of(kind) is feature_of(pa.list_(kind)) is feature_of(pa.struct([("x", kind), ("y", pa.int8())])) is None


def test_a_struct_of_bytes_and_path_is_an_image() -> None:
    assert feature_of(IMAGE) == {"_type": "Image"} and feature_of(pa.list_(IMAGE)) == [{"_type": "Image"}]


def stated(features: Any) -> dict[str, Any]:
    return input_features(pa.schema([], metadata={"huggingface": json.dumps({"info": {"features": features}})}))


@pytest.mark.parametrize(
    "feature",
    [
        VALUE,
        {"names": ["x", "y"], "_type": "ClassLabel"},
        {"mode": "RGB", "_type": "Image"},
        [VALUE],
        {"feature": VALUE, "length": 3, "_type": "Sequence"},
        {"feature": {"a": VALUE}, "_type": "List"},
        {"a": VALUE, "b": [VALUE]},
        {"_type": VALUE},
    ],
)
def test_features_that_an_input_states_are_kept(feature: Any) -> None:
    assert stated({"x": feature}) == {"x": feature}


@pytest.mark.parametrize(
    "feature",
    [
        "garbage",
        5,
        None,
        [],
        {},
        [VALUE, VALUE],
        {"dtype": "date32[day]", "_type": "Value"},
        {"dtype": 5, "_type": "Value"},
        {"_type": "Nonsense"},
        {"names": ["x", "x"], "_type": "ClassLabel"},
        {"names": "xy", "_type": "ClassLabel"},
        {"feature": 5, "_type": "Sequence"},
        {"a": VALUE, "b": "garbage"},
    ],
)
def test_nonsense_among_an_inputs_features_is_left_out(feature: Any) -> None:
    assert stated({"x": feature, "y": VALUE}) == {"y": VALUE}


def test_nonsense_in_place_of_the_features_is_ignored() -> None:
    assert stated([1]) == {}
    for metadata in (b"\xff", b"[]", b"{not json", b'{"info": 5}'):
        assert input_features(pa.schema([], metadata={b"huggingface": metadata})) == {}
    assert input_features(pa.schema([])) == {}
