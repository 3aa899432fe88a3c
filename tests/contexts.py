"""A run's context for tests of its stages, with everything settled that they do not look at."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipelines.output.config import EditJobConfig
from pipelines.output.context import RunContext
from pipelines.records.schema import ColumnMap, output_schema
from vimaedit.models.files import ModelFacts

NO_COLUMNS = ColumnMap(edit={}, passed={})


def make_context(job: EditJobConfig, facts: ModelFacts, **others: Any) -> RunContext:
    """Return a context of batches of two and one thread; `others` are fields of `RunContext`."""
    defaults: dict[str, Any] = {
        "columns": NO_COLUMNS,
        "schema": output_schema(pa.schema([]), NO_COLUMNS),
        "input_root": "in",
        "batch_size": 2,
        "threads": 1,
        "config_digest": "c",
        "model_digest": "m",
        "plan_digest": "p",
        "version": "v",
        "generation": 1,
    }
    return RunContext(job=job, facts=facts, **{**defaults, **others})
