"""Names and types of input and output columns: what is read, what is passed through, what is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.records.types import (
    BLEND_WORDS,
    IMAGE,
    UnwritableType,
    common_type,
    input_features,
    with_features,
    written_type,
)
from vimaedit.errors import ConfigError
from vimaedit.metrics.names import columns_of

EDIT_COLUMNS = ("image", "source_prompt", "target_prompt", "id", "blend_words", "given_mask", "seed", "overrides")
REQUIRED_COLUMNS = ("image", "source_prompt", "target_prompt")
# Passed through; of them editors may read the instruction alone.
SCORING_COLUMNS = ("reference_mask", "reference_image", "category", "instruction")
INPUT_COLUMNS = EDIT_COLUMNS + SCORING_COLUMNS

BENCHMARK_FIELDS = (  # of the input files that the project itself writes
    pa.field("id", pa.string()),
    pa.field("image", IMAGE),
    pa.field("source_prompt", pa.string()),
    pa.field("target_prompt", pa.string()),
    pa.field("blend_words", BLEND_WORDS),
    pa.field("category", pa.string()),
    pa.field("instruction", pa.string()),
    pa.field("reference_mask", IMAGE),
)

IMAGE_COLUMNS = ("image", "edited_image", "edit_mask", "critical_mask")
# Measured outside the edit mask, in every row.
ALWAYS_MEASURED = (
    "background_psnr",
    "background_ssim",
    "background_mse",
    "mask_fraction",
    "changed_fraction",
    "unchanged",
    "shift_px",
)
OUTPUT_FIELDS = (
    pa.field("id", pa.string()),
    pa.field("edit_index", pa.int32()),
    pa.field("input_file", pa.string()),
    pa.field("input_row", pa.int64()),
    pa.field("source_prompt", pa.string()),
    pa.field("target_prompt", pa.string()),
    pa.field("blend_words_used", BLEND_WORDS),
    *(pa.field(name, IMAGE) for name in IMAGE_COLUMNS),
    pa.field("mask_source", pa.string()),
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
    pa.field("family", pa.string()),
    pa.field("model_digest", pa.string()),
    pa.field("version", pa.string()),
    pa.field("unit_id", pa.string()),
    pa.field("seconds", pa.float32()),
    pa.field(
        "metrics", pa.struct([(name, pa.bool_() if name == "unchanged" else pa.float32()) for name in ALWAYS_MEASURED])
    ),  # and those that ride along
)
OUTPUT_NAMES = frozenset(field.name for field in OUTPUT_FIELDS)
INPUT_PREFIX = "input_"  # of passed-through columns whose own name is taken


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
        return {name: source for name, source in self.passed.items() if name.endswith(f"{INPUT_PREFIX}{source}")}


def map_columns(names: Sequence[str], columns: Mapping[str, str]) -> ColumnMap:
    """Assign every input column a use. `columns` says which input column stands for which name of the contract.

    Raises: ConfigError for an unknown name on either side, a missing required column.
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
    read = set(edit.values())
    others = [source for source in names if source not in read]
    # Whose own name is free keeps it; only then is a name sought for the others.
    taken = OUTPUT_NAMES | set(scoring.values())
    keeping = {source for source in others if source not in scoring and source not in taken}
    taken |= keeping
    passed: dict[str, str] = {}
    for source in others:
        name = scoring.get(source, source)
        if source not in scoring and source not in keeping:
            while name in taken:
                name = f"{INPUT_PREFIX}{name}"
            taken |= {name}
        passed[name] = source
    return ColumnMap(edit=edit, passed=passed)


def unify_passed(first: pa.Schema | None, schema: pa.Schema, edit_columns: Sequence[str], file: str) -> pa.Schema:
    """Merge a further file's schema into that of the files before, in the types in which columns are written.

    The columns read by the edit may differ in type; all others must have a type that holds both without loss.

    Raises: ConfigError naming file and column, and both types where they do not fit.
    """
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise ConfigError(
            f"input: got {schema.names.count(twice[0])} columns named {twice[0]!r} in {file}; allowed: one of each name"
        )
    fields = {} if first is None else {field.name: field for field in first}
    for field in schema:
        if field.name in edit_columns:
            fields.setdefault(field.name, field)
            continue
        kind = _written_type(field, file)
        if field.name not in fields:
            fields[field.name] = pa.field(field.name, kind, metadata=_own_metadata(field))
            continue
        old = fields[field.name]
        common = common_type(old.type, kind)
        if common is None:
            raise ConfigError(
                f"input: got column {field.name!r} as {field.type} in {file} and as {old.type} before; "
                "allowed: one type in all files, or types of which one holds all values of both"
            )
        if common != old.type:
            fields[field.name] = pa.field(field.name, common, metadata=old.metadata)
    metadata = {**(schema.metadata or {}), **((first.metadata if first is not None else None) or {})}
    return pa.schema(list(fields.values()), metadata=metadata)


def _own_metadata(field: pa.Field) -> dict[bytes, bytes] | None:
    """Return what a file says of a column, without the number that it has there."""
    return {key: value for key, value in (field.metadata or {}).items() if key != b"PARQUET:field_id"} or None


def _written_type(field: pa.Field, file: str) -> pa.DataType:
    try:
        return written_type(field.type)
    except UnwritableType as error:
        raise ConfigError(
            f"input: got column {field.name!r} as {field.type} in {file}, which cannot be passed through; "
            "allowed: numbers, texts, binaries, times, and lists and structs of them; remove or convert it"
        ) from error


def output_schema(input_schema: pa.Schema, columns: ColumnMap, riding: Sequence[str] = ()) -> pa.Schema:
    """Build the output's schema: the contract's columns, then the passed-through ones, with Hugging Face `features`.

    `riding`: groups of metrics that stand in `metrics` beside those that every run has. Columns for which `datasets` has no name
    have no feature.
    """
    passed = [input_schema.field(source).with_name(name) for name, source in columns.passed.items()]
    metrics = OUTPUT_FIELDS[-1]
    more = [pa.field(name, pa.float32()) for name in columns_of(riding)]
    fields = [*OUTPUT_FIELDS[:-1], metrics.with_type(pa.struct([*metrics.type, *more])), *passed]
    known = input_features(input_schema)
    return with_features(fields, {name: known[source] for name, source in columns.passed.items() if source in known})
