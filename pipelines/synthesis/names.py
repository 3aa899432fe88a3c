"""Names and types of the columns of scores, of decisions and of the data set."""

from __future__ import annotations

import json

import pyarrow as pa

from pipelines.records.schema import OUTPUT_NAMES
from pipelines.records.types import IMAGE, feature_of
from pipelines.synthesis.columns import PAIR_FIELDS

SCORES = (
    "change",  # mean absolute difference in the mask, or of the whole picture where there is none; values 0 to 1
    "changed_fraction",  # of all pixels
    "mask_fraction",
    "background_psnr",  # over the pixels outside the mask alone, so that it does not depend on the mask's size
    "background_lpips",
    "clip_source",
    "clip_target",
    "clip_image",
    "clip_direction",
    "aesthetic",
    "unsafe",
)
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
    pa.field("edited_image", IMAGE),
    *(pa.field(name, pa.string()) for name in ("original_prompt", "edited_prompt", "category")),
    pa.field("blend_words", pa.list_(pa.struct([("source", pa.string()), ("target", pa.string())]))),
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
    *(pa.field(name, pa.string()) for name in ("method", "model", "model_digest", "config_digest", "version")),
)
REJECTED_FIELDS = (*DATA_FIELDS, pa.field("outcome", pa.string()), pa.field("reason", pa.string()))
# Passed-through columns keep clear of all of them, so that each has one name in every object.
TAKEN = (*{*OUTPUT_NAMES, *(field.name for fields in (PAIR_FIELDS, SCORE_FIELDS, REJECTED_FIELDS) for field in fields)},)


def with_features(fields: list[pa.Field]) -> pa.Schema:
    """Build a schema that tells `datasets` what its columns are."""
    features = {each.name: feature_of(each.type) for each in fields}
    known = {name: feature for name, feature in features.items() if feature is not None}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": known}})})
