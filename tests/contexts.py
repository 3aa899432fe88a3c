"""A run's context and rows for tests of its stages, with everything settled that they do not look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.output.config import EditJobConfig
from pipelines.output.context import RunContext
from pipelines.records.row import Row
from pipelines.records.rules import RecordRules
from pipelines.records.schema import ColumnMap, output_schema
from vimaedit.images import CanvasSpec, FittedImage
from vimaedit.models.files import ModelFacts
from vimaedit.types import EditRequest

Shape = tuple[int, int]
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


def make_rules(**changes: Any) -> RecordRules:
    """Return rules of a canvas of 16 px."""
    rules: dict[str, Any] = {
        "min_side_px": 11,
        "max_pixels": 10_000,
        "canvas": CanvasSpec(fit="crop", size=16, granularity=8),
        "clip_side": 7,
        "seed": 3,
        "reads_masks": False,
        "keeps_coded": False,
    }
    return RecordRules(**{**rules, **changes})


def make_row(id: str = "a", **fields: Any) -> Row:
    """Return a row of which only the prompts are known."""
    identity: dict[str, Any] = {"edit_index": 0, "input_file": "a", "input_row": 0}
    return Row(**{"id": id, **identity, "source_prompt": "s", "target_prompt": "t", "seed": 3, **fields})


def make_picture(shape: Shape, value: int = 11) -> FittedImage:
    """Return a picture of one grey that was a canvas of that shape already."""
    return FittedImage(image=np.full((*shape, 3), value, np.uint8), crop_box=(0, 0, *shape[::-1]), size=shape[::-1])


def with_picture(row: Row, picture: FittedImage, **others: Any) -> Row:
    """Give a row its picture and the request to edit it; `others` are fields of `EditRequest`."""
    prompts = {"source_prompt": row.source_prompt, "target_prompt": row.target_prompt}
    row.picture = picture
    row.request = EditRequest(**{"id": row.id, "image": picture.image, "seed": row.seed, **prompts, **others})
    return row


def flip_byte(path: Path, column: str = "edited_image.bytes") -> None:
    """Change the last byte of a column. Pictures are not compressed, so that nothing but a checksum tells."""
    metadata = pq.read_metadata(path)
    group = metadata.row_group(metadata.num_row_groups - 1)
    (chunk,) = [found for n in range(group.num_columns) if (found := group.column(n)).path_in_schema == column]
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    content[start + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
