"""Names and types of input and output columns: what is read, what is passed through, what is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vimaedit.errors import ConfigError

EDIT_COLUMNS = ("image", "source_prompt", "target_prompt", "id", "blend_words", "given_mask", "seed", "overrides")
REQUIRED_COLUMNS = ("image", "source_prompt", "target_prompt")
SCORING_COLUMNS = ("reference_mask", "reference_image", "category", "instruction")  # passed through, never read here
INPUT_COLUMNS = EDIT_COLUMNS + SCORING_COLUMNS

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGE_COLUMNS = ("image", "edited_image", "edit_mask", "critical_mask")
METRICS = ("background_psnr", "background_ssim", "background_mse", "mask_fraction", "changed_fraction")
OUTPUT_FIELDS = (
    pa.field("id", pa.string()),
    pa.field("edit_index", pa.int32()),
    pa.field("input_file", pa.string()),
    pa.field("input_row", pa.int64()),
    pa.field("source_prompt", pa.string()),
    pa.field("target_prompt", pa.string()),
    pa.field("blend_words_used", pa.list_(pa.struct([("source", pa.string()), ("target", pa.string())]))),
    *(pa.field(name, IMAGE) for name in IMAGE_COLUMNS),
    pa.field("grounded", pa.bool_()),
    pa.field("original_size", pa.struct([("width", pa.int32()), ("height", pa.int32())])),
    pa.field("crop_box", pa.struct([(side, pa.int32()) for side in ("left", "top", "right", "bottom")])),
    pa.field("status", pa.string()),
    pa.field("error_stage", pa.string()),
    pa.field("error_type", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("attempts", pa.int32()),
    pa.field("warnings", pa.list_(pa.string())),
    pa.field("seed", pa.int64()),
    pa.field("method", pa.string()),
    pa.field("steps", pa.int32()),
    pa.field("config_digest", pa.string()),
    pa.field("model", pa.string()),
    pa.field("model_digest", pa.string()),
    pa.field("version", pa.string()),
    pa.field("unit_id", pa.string()),
    pa.field("seconds", pa.float32()),
    pa.field("metrics", pa.struct([*((name, pa.float32()) for name in METRICS), ("unchanged", pa.bool_())])),
)
OUTPUT_NAMES = frozenset(field.name for field in OUTPUT_FIELDS)


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """Which input column serves what.

    `edit`: name in the contract -> name in the input. `passed`: name in the output -> name in the input.
    """

    edit: Mapping[str, str]
    passed: Mapping[str, str]

    @property
    def renamed(self) -> dict[str, str]:
        """The passed-through columns that stand under `input_<name>`: output name -> input name."""
        return {name: source for name, source in self.passed.items() if name == f"input_{source}"}


def map_columns(names: Sequence[str], columns: Mapping[str, str]) -> ColumnMap:
    """Assign every input column a use. `columns` says which input column stands for which name of the contract.

    Raises: ConfigError for an unknown name on either side, a missing required column, two columns of one output name.
    """
    for name, source in columns.items():
        if name not in INPUT_COLUMNS:
            raise ConfigError(f"columns: got {name!r}; allowed: {', '.join(INPUT_COLUMNS)}")
        if source not in names:
            raise ConfigError(f"columns.{name}: got {source!r}, which the input lacks; allowed: {', '.join(names)}")
    known = {name: columns.get(name, name) for name in INPUT_COLUMNS if columns.get(name, name) in names}
    for name in REQUIRED_COLUMNS:
        if name not in known:
            raise ConfigError(
                f"input: got the columns {', '.join(names) or '(none)'}; {name!r} is required (columns.{name}=NAME says which one it is)"
            )
    edit = {name: known[name] for name in EDIT_COLUMNS if name in known}
    scoring = {known[name]: name for name in SCORING_COLUMNS if name in known}
    passed: dict[str, str] = {}
    for source in names:
        if source in edit.values():
            continue
        name = scoring.get(source, source)
        name = f"input_{name}" if name in OUTPUT_NAMES else name
        if name in passed:
            raise ConfigError(
                f"input: got the columns {passed[name]!r} and {source!r}, which would both be written as {name!r}; rename one"
            )
        passed[name] = source
    return ColumnMap(edit=edit, passed=passed)


def unify_passed(first: pa.Schema | None, schema: pa.Schema, edit_columns: Sequence[str], file: str) -> pa.Schema:
    """Merge a further file's schema: the columns read by the edit may differ in type, all others must fit together.

    Raises: ConfigError naming file, column and both types.
    """
    if first is None:
        return schema
    fields = {field.name: field for field in first}
    for field in schema:
        old = fields.get(field.name)
        if old is None or field.name in edit_columns:
            fields.setdefault(field.name, field)
            continue
        try:
            (fields[field.name],) = pa.unify_schemas([pa.schema([old]), pa.schema([field])], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ConfigError(
                f"input: got column {field.name!r} as {field.type} in {file} and as {old.type} before; allowed: one type in all files"
            ) from error
    metadata = {**(schema.metadata or {}), **(first.metadata or {})}
    return pa.schema(list(fields.values()), metadata=metadata)


def output_schema(input_schema: pa.Schema, columns: ColumnMap) -> pa.Schema:
    """Build the output's schema: the contract's columns, then the passed-through ones, with Hugging Face `features`."""
    passed = [pa.field(name, input_schema.field(source).type) for name, source in columns.passed.items()]
    fields = [*OUTPUT_FIELDS, *passed]
    known = input_features(input_schema)
    features: dict[str, Any] = {field.name: feature_of(field.type) for field in fields}
    features.update({name: {"_type": "Image"} for name in IMAGE_COLUMNS})
    features.update({name: known[source] for name, source in columns.passed.items() if source in known})
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def input_features(schema: pa.Schema) -> dict[str, Any]:
    """Read the Hugging Face features that an input file states; none where it states none or nonsense."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def feature_of(kind: pa.DataType) -> Any:
    """Describe an Arrow type as a Hugging Face feature. `{bytes, path}` structs are images."""
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_struct(kind):
        return {field.name: feature_of(field.type) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [feature_of(kind.value_type)]  # understood by old and new versions of datasets
    if pa.types.is_dictionary(kind):
        return feature_of(kind.value_type)
    names = {pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64"}
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}


def image_leaves(schema: pa.Schema) -> set[str]:
    """Name the Parquet columns that hold coded pictures, which no compression makes smaller."""
    return {f"{field.name}.bytes" for field in schema if field.type == IMAGE} | {
        field.name for field in schema if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    }
