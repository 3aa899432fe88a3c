"""Names and types of all columns of a synthesis (pairs, scores, decisions, the data set), and the rows of `<output>/pairs`."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.records.schema import OUTPUT_NAMES
from pipelines.records.types import BLEND_WORDS, IMAGE, with_features
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
    pa.field("blend_words", BLEND_WORDS),
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
UNPAIRED_FIELDS = (
    *(pa.field(name, pa.string()) for name in ("id", "pair_id", "caption_file")),
    pa.field("caption_row", pa.int64()),
    pa.field("source_prompt", pa.string()),
    pa.field("candidates", pa.int32()),  # so many were asked for
    *(pa.field(name, pa.string()) for name in ("stage", "reason", "message")),
)
UNPAIRED_SCHEMA = pa.schema(UNPAIRED_FIELDS)

# Score -> where the bars of its histogram begin and end; what lies outside counts in the last bar on its side.
SCORES = {
    "change": (0.0, 0.5),  # mean absolute difference in the mask, or of the whole picture where there is none; values 0 to 1
    "changed_fraction": (0.0, 1.0),  # of all pixels
    "mask_fraction": (0.0, 1.0),
    "background_psnr": (10.0, 60.0),  # over the pixels outside the mask alone, so that it does not depend on the mask's size
    "background_lpips": (0.0, 0.6),
    "clip_source": (0.0, 1.0),
    "clip_target": (0.0, 1.0),
    "clip_image": (0.0, 1.0),
    "clip_direction": (-0.4, 1.0),
    "aesthetic": (0.0, 10.0),
    "unsafe": (-1.0, 1.0),
    "judge": (0.0, 10.0),  # overall of VIEScore, 0 to 10
}
SCORE_FIELDS = (
    pa.field("part", pa.string()),  # object below candidates/data, and row in it
    pa.field("part_row", pa.int32()),
    *(pa.field(name, pa.string()) for name in ("id", "pair_id", "caption_file")),
    pa.field("caption_row", pa.int64()),
    pa.field("candidate", pa.int32()),
    *(pa.field(name, pa.string()) for name in ("category", "source_prompt", "target_prompt", "status", "error_type")),
    pa.field("has_words", pa.bool_()),  # words say what changes
    pa.field("has_mask", pa.bool_()),
    pa.field("source_digest", pa.string()),  # of the source picture's pixels
    pa.field("looks", pa.binary()),  # perceptual hash of the source, then of the edited picture
    pa.field("bytes", pa.int64()),  # of the pictures
    *(pa.field(name, pa.float64()) for name in SCORES),
)
SCORE_SCHEMA = pa.schema(SCORE_FIELDS)
DECISION_FIELDS = (
    *(SCORE_SCHEMA.field(name) for name in ("id", "pair_id", "caption_file", "caption_row", "candidate", "category")),
    *(SCORE_SCHEMA.field(name) for name in ("part", "part_row", "source_digest")),
    *(pa.field(name, pa.float64()) for name in SCORES),
    pa.field("rank", pa.float64()),  # what the best of a pair is chosen by
    pa.field("outcome", pa.string()),  # kept, or the first filter that it did not pass
    pa.field("reason", pa.string()),
    pa.field("split", pa.string()),  # of what is kept
)
DECISION_SCHEMA = pa.schema(DECISION_FIELDS)
DATA_FIELDS = (
    pa.field("original_image", IMAGE),
    pa.field("edit_prompt", pa.string()),
    pa.field("edit_prompt_before", pa.string()),  # where it was written anew from the result
    pa.field("edited_image", IMAGE),
    *(pa.field(name, pa.string()) for name in ("original_prompt", "edited_prompt", "category")),
    pa.field("blend_words", BLEND_WORDS),
    pa.field("mask", IMAGE),
    pa.field("scores", pa.struct([(name, pa.float32()) for name in SCORES])),
    *(pa.field(name, pa.string()) for name in ("id", "pair_id", "caption_file")),
    pa.field("caption_row", pa.int64()),
    pa.field("candidate", pa.int32()),
    pa.field("source_image_id", pa.string()),  # equal for equal source pictures; they never lie in two splits
    pa.field("source_seed", pa.int64()),
    pa.field("seed", pa.int64()),
    pa.field("overrides", pa.string()),
    pa.field("steps", pa.int32()),
    *(pa.field(name, pa.string()) for name in ("method", "model", "family", "model_digest", "config_digest", "version")),
)
# Names as preference trainers read them: what was asked for, which picture is the better answer and which the worse.
PREFERENCE_FIELDS = (
    pa.field("prompt", pa.string()),
    pa.field("original_image", IMAGE),
    pa.field("chosen", IMAGE),
    pa.field("rejected", IMAGE),
    *(pa.field(name, pa.string()) for name in ("original_prompt", "edited_prompt", "category")),
    pa.field("score", pa.string()),  # what tells them apart
    *(pa.field(name, pa.float32()) for name in ("chosen_score", "rejected_score", "margin")),
    *(pa.field(name, pa.int32()) for name in ("chosen_candidate", "rejected_candidate")),
    *(pa.field(name, pa.int64()) for name in ("chosen_seed", "rejected_seed")),
    pa.field("rejected_outcome", pa.string()),  # the filter that took it out
    *(pa.field(name, pa.string()) for name in ("id", "pair_id", "caption_file", "source_image_id")),
    pa.field("caption_row", pa.int64()),
    *(pa.field(name, pa.string()) for name in ("method", "model", "model_digest", "config_digest", "version")),
)
TURN_FIELDS = (
    *(pa.field(f"image_{number}", IMAGE) for number in range(3)),
    *(pa.field(f"edit_prompt_{number}", pa.string()) for number in (1, 2)),  # from the picture before to the one of that number
    *(pa.field(f"prompt_{number}", pa.string()) for number in range(3)),
    *(pa.field(name, pa.string()) for name in ("category_1", "category_2", "first_pair_id")),
    pa.field("first_candidate", pa.int32()),
    *(pa.field(name, pa.string()) for name in ("id", "pair_id", "caption_file", "source_image_id")),
    pa.field("candidate", pa.int32()),
    pa.field("caption_row", pa.int64()),
    *(pa.field(name, pa.string()) for name in ("method", "model", "model_digest", "config_digest", "version")),
)
REJECTED_FIELDS = (*DATA_FIELDS, pa.field("outcome", pa.string()), pa.field("reason", pa.string()))
# Passed-through columns keep clear of all of them, so that each has one name in every object.
TAKEN = (*{*OUTPUT_NAMES, *(field.name for fields in (PAIR_FIELDS, SCORE_FIELDS, REJECTED_FIELDS) for field in fields)},)

GROUP_BYTES = 100_000_000  # of a row group's pictures, each counted as often as it occurs


def pair_schema(passed_types: Mapping[str, pa.DataType]) -> pa.Schema:
    """Build the schema of `<output>/pairs`: ordinary input records, with where each comes from."""
    return with_features([*PAIR_FIELDS, *(pa.field(name, kind) for name, kind in passed_types.items())])


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
    return table_bytes(pa.Table.from_pylist(list(rows), schema=UNPAIRED_SCHEMA))
