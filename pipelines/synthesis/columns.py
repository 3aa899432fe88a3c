"""The rows of `<output>/pairs` and of what was rejected before there was a pair."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.records.types import IMAGE, feature_of
from pipelines.store.parquet import open_writer, table_bytes, write_group
from pipelines.synthesis.input import Record
from vimaedit.errors import RequestError
from vimaedit.synthesis.candidates import Candidate
from vimaedit.synthesis.pairs import PromptPair

OVERRIDE_TYPE = pa.struct(
    [
        ("image_strength", pa.float64()),
        ("target_guidance", pa.float64()),
        ("thresholds", pa.struct([("edit", pa.float64()), ("critical", pa.float64())])),
        ("windows", pa.struct([("self", pa.float64()), ("text", pa.float64()), ("image", pa.float64())])),
    ]
)
PAIR_FIELDS = (
    pa.field("id", pa.string()),
    pa.field("image", IMAGE),
    pa.field("source_prompt", pa.string()),
    pa.field("target_prompt", pa.string()),
    pa.field("blend_words", pa.list_(pa.struct([("source", pa.string()), ("target", pa.string())]))),
    pa.field("instruction", pa.string()),
    pa.field("category", pa.string()),
    pa.field("seed", pa.int64()),
    pa.field("overrides", OVERRIDE_TYPE),
    pa.field("pair_id", pa.string()),  # unique: input file, row, edit
    pa.field("candidate", pa.int32()),
    pa.field("candidate_overrides", pa.string()),  # as JSON, since editors do not write out what they were given
    pa.field("caption_file", pa.string()),
    pa.field("caption_row", pa.int64()),
    pa.field("source_seed", pa.int64()),  # of the source picture; null: it was given
)
REJECTED_FIELDS = (
    *(pa.field(name, pa.string()) for name in ("id", "pair_id", "caption_file")),
    pa.field("caption_row", pa.int64()),
    pa.field("source_prompt", pa.string()),
    pa.field("candidates", pa.int32()),  # so many were asked for
    *(pa.field(name, pa.string()) for name in ("stage", "reason", "message")),
)
REJECTED_SCHEMA = pa.schema(REJECTED_FIELDS)

GROUP_BYTES = 100_000_000  # of a row group's pictures, each counted as often as it occurs


def pair_schema(passed_types: Mapping[str, pa.DataType]) -> pa.Schema:
    """Build the schema of `<output>/pairs`: ordinary input records, with where each comes from."""
    fields = [*PAIR_FIELDS, *(pa.field(name, kind) for name, kind in passed_types.items())]
    features = {each.name: feature_of(each.type) for each in fields}
    known = {name: feature for name, feature in features.items() if feature is not None}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": known}})})


def pair_row(
    record: Record, file: str, pair_id: str, pair: PromptPair, candidate: Candidate, image: bytes, source_seed: int | None
) -> dict[str, Any]:
    """Return one candidate's record, without its passed-through columns."""
    given = candidate.overrides
    return {
        "id": record.id,
        "image": {"bytes": image, "path": None},
        "source_prompt": pair.source_prompt,
        "target_prompt": pair.target_prompt,
        "blend_words": [dataclasses.asdict(phrase) for phrase in pair.blend] or None,
        "instruction": pair.instruction,
        "category": pair.category,
        "seed": candidate.seed,
        "overrides": {
            "image_strength": given.get("image_strength"),
            "target_guidance": given.get("target_guidance"),
            "thresholds": {side: given.get(f"{side}_threshold") for side in ("edit", "critical")},
            "windows": {side: given.get(f"{side}_window") for side in ("self", "text", "image")},
        },
        "pair_id": pair_id,
        "candidate": candidate.number,
        "candidate_overrides": json.dumps(dict(given), sort_keys=True),
        "caption_file": file,
        "caption_row": record.input_row,
        "source_seed": source_seed,
    }


def rejected_row(record: Record, file: str, pair_id: str, count: int, stage: str, error: Exception) -> dict[str, Any]:
    """Return the row that stands for the candidates of a pair that could not be had."""
    caption = record.values.get("source_prompt")
    return {
        "id": record.id,
        "pair_id": pair_id,
        "caption_file": file,
        "caption_row": record.input_row,
        "source_prompt": caption if isinstance(caption, str) else None,
        "candidates": count,
        "stage": stage,
        "reason": error.code if isinstance(error, RequestError) else type(error).__name__,
        "message": str(error),
    }


def pair_file(rows: Sequence[Mapping[str, Any]], passed: Sequence[pa.Table], schema: pa.Schema) -> bytes:
    """Code candidates as Parquet, byte for byte the same every time; a picture stands once in a row group."""
    buffer = io.BytesIO()
    with open_writer(buffer, schema, use_dictionary=True, dictionary_pagesize_limit=2 * GROUP_BYTES) as writer:
        start, size = 0, 0
        for end, row in enumerate([*rows, None]):
            own = 0 if row is None else len(row["image"]["bytes"])
            if row is None or (end > start and size + own > GROUP_BYTES):
                write_group(writer, _pair_table(rows[start:end], passed[start:end], schema))
                start, size = end, 0
            size += own
    return buffer.getvalue()


def _pair_table(rows: Sequence[Mapping[str, Any]], passed: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    own = pa.Table.from_pylist(list(rows), schema=pa.schema(PAIR_FIELDS))
    others = pa.concat_tables(passed) if passed else schema.empty_table()
    return pa.table([*own.columns, *(others.column(name) for name in schema.names[len(PAIR_FIELDS) :])], schema=schema)


def rejected_file(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Code rejected pairs as Parquet."""
    return table_bytes(pa.Table.from_pylist(list(rows), schema=REJECTED_SCHEMA))
