from __future__ import annotations

import json

import pyarrow as pa
import pytest

from pipelines.records.schema import OUTPUT_FIELDS, map_columns, output_schema
from pipelines.records.types import IMAGE
from vimaedit.errors import ConfigError

REQUIRED = ["image", "source_prompt", "target_prompt"]


def test_other_columns_pass_and_those_with_output_names_are_renamed() -> None:
    columns = map_columns([*REQUIRED, "seed", "status", "width", "category"], {})
    assert dict(columns.edit) == {name: name for name in [*REQUIRED, "seed"]}
    assert dict(columns.passed) == {"input_status": "status", "width": "width", "category": "category"}
    assert columns.renamed == {"input_status": "status"}


def test_columns_rename_and_what_they_displace_passes_through() -> None:
    columns = map_columns(
        ["photo", "image", "before", "after", "kind"],
        {"image": "photo", "source_prompt": "before"} | {"target_prompt": "after", "category": "kind"},
    )
    assert dict(columns.edit) == {"image": "photo", "source_prompt": "before", "target_prompt": "after"}
    assert dict(columns.passed) == {"input_image": "image", "category": "kind"}


def test_a_renamed_column_takes_no_name_that_another_has() -> None:
    columns = map_columns([*REQUIRED, "status", "input_status", "category", "kind"], {"category": "kind"})
    assert dict(columns.passed) == {
        "input_input_status": "status",
        "input_status": "input_status",
        "input_category": "category",
        "category": "kind",
    }
    assert columns.renamed == {"input_input_status": "status", "input_category": "category"}


def test_one_input_column_may_serve_two_names() -> None:
    columns = map_columns(REQUIRED, {"id": "source_prompt"})
    assert columns.edit["id"] == "source_prompt"
    assert not columns.passed


@pytest.mark.parametrize(
    ("names", "columns", "text"),
    [
        (REQUIRED, {"imge": "image"}, r"columns: got 'imge'; allowed: image, source_prompt"),
        (REQUIRED, {"image": "photo"}, r"columns.image: got 'photo', which the input lacks; allowed: image, source_prompt"),
        (REQUIRED[:2], {}, r"got the columns image, source_prompt; 'target_prompt' is required \(columns.target_prompt=NAME"),
    ],
)
def test_wrong_columns_are_refused(names: list[str], columns: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        map_columns(names, columns)


def test_the_output_schema_states_hugging_face_features() -> None:
    size = pa.struct([("w", pa.int16())])
    own = {"info": {"features": {"label": {"names": ["x", "y"], "_type": "ClassLabel"}}}}
    fields = [(name, pa.string()) for name in REQUIRED]
    fields += [("label", pa.int64()), ("reference_image", IMAGE), ("sizes", pa.list_(size)), ("made", pa.timestamp("us"))]
    given = pa.schema(fields, metadata={"huggingface": json.dumps(own)})
    schema = output_schema(given, map_columns(given.names, {}))
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert (
        list(features)
        == schema.names
        == [field.name for field in OUTPUT_FIELDS] + ["label", "reference_image", "sizes", "made"]
    )
    assert features["edited_image"] == features["edit_mask"] == features["reference_image"] == {"_type": "Image"}
    assert features["label"] == {"names": ["x", "y"], "_type": "ClassLabel"}
    assert features["sizes"] == [{"w": {"dtype": "int16", "_type": "Value"}}]
    assert features["made"] == {"dtype": "timestamp[us]", "_type": "Value"}
    assert features["warnings"] == [{"dtype": "string", "_type": "Value"}]
    assert features["metrics"]["background_psnr"] == {"dtype": "float32", "_type": "Value"}
    assert schema.field("edited_image").type == IMAGE
