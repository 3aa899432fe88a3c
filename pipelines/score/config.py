"""The settings of a scoring run, and the columns of what it writes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from pipelines.options import Pictures, Place, Requests, Scoring, check_bases, check_given
from pipelines.store.listing import Inputs
from pipelines.store.masking import mask_urls
from vimaedit.config import check_choice, check_range
from vimaedit.errors import ConfigError
from vimaedit.metrics.names import METRICS

PARTS = ("whole", "last")
SCORE_FIELDS = (
    pa.field("id", pa.string()),
    pa.field("edit_index", pa.int32()),
    pa.field("input_file", pa.string()),
    pa.field("input_row", pa.int64()),
    pa.field("category", pa.string()),
    pa.field("instruction", pa.string()),
    pa.field("source_prompt", pa.string()),
    pa.field("target_prompt", pa.string()),
    pa.field("name", pa.string()),
    pa.field("status", pa.string()),
    pa.field("message", pa.string()),
    pa.field("edited_file", pa.string()),
    pa.field("edited_row", pa.int64()),
    pa.field("grounded", pa.bool_()),
    pa.field("seconds", pa.float64()),
    *(pa.field(name, pa.float64()) for name in METRICS),
    pa.field("judge_reason", pa.string()),  # why the judge gave no score
    pa.field("judge_answers", pa.list_(pa.string())),  # as they came
)
SCORE_SCHEMA = pa.schema(SCORE_FIELDS)
MISSING = "missing"  # status of a request without an edited picture
UNSCORED = "unscored"  # ... and of one whose pictures cannot be read or compared


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Place, Scoring, Pictures, Requests):
    """What is scored against what, by which metrics (`jobs.score`)."""

    benchmark: Inputs = (
        ""  # Parquet file, folder or glob with reference_mask, category, ..., or [A, B]; local or any fsspec URL
    )
    edited: str = ""  # output of jobs.edit; or Parquet with id and edited_image; or a folder of pictures named by record id
    output: str = ""  # folder, local or any fsspec URL; gets scores/<name>.parquet and scores/<name>.json
    name: str = ""  # of these scores; empty: the run's method, else the last part of `edited`
    part: str = "whole"  # of an edited picture. last: of several squares side by side the last one
    against: str = ""  # name of other scores in the same output: paired comparison
    edited_columns: dict[str, str] = field(default_factory=dict)  # of an edited Parquet: as `columns`
    max_missing_fraction: float = 0.05  # with more requests without an edited picture a finished run exits with 3
    batch_size: int = 8  # pairs that go through the networks at once

    def __post_init__(self) -> None:
        check_bases(self, ScoreConfig)
        check_given(self, ("benchmark", "edited", "output"))
        for name in ("name", "against"):
            if "/" in getattr(self, name) or getattr(self, name)[:1] in (".", "_"):
                raise ConfigError(f"{name}: got {getattr(self, name)!r}; allowed: a file name that does not begin with . or _")
        if self.against and self.against == self.name:
            raise ConfigError(f"against: got {self.against!r}, these scores themselves; allowed: the name of other scores")
        check_choice("part", self.part, PARTS)
        check_range("max_missing_fraction", self.max_missing_fraction, 0.0, 1.0)
        check_range("batch_size", self.batch_size, 1, 4096)

    @property
    def shown_edited(self) -> str:
        """`edited` without credentials."""
        return mask_urls(self.edited)
