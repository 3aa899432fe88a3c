"""A benchmark of drawn scenes as records to edit, each with its exact mask and its exact target picture."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.records.schema import BENCHMARK_FIELDS
from pipelines.records.types import IMAGE, feature_of
from pipelines.store.location import Location
from pipelines.store.parquet import BrokenParquet, read_footer
from vimaedit.config import check_choice, check_range
from vimaedit.images import encode_image, encode_mask
from vimaedit.scenes.benchmark import MAX_COUNT, MAX_SEED, benchmark_seed, spread_categories
from vimaedit.scenes.edits import CATEGORIES, edit_mask, make_edit
from vimaedit.scenes.render import render_scene
from vimaedit.scenes.scenes import SPLITS, scene_to_json

FILE_NAME = "records.parquet"
GROUP_ROWS = 100
FIELDS = (
    *BENCHMARK_FIELDS,
    pa.field("reference_image", IMAGE),
    pa.field("target_determined", pa.bool_()),
    pa.field("source_scene", pa.string()),
    pa.field("target_scene", pa.string()),
    pa.field("edited_object", pa.struct([("source", pa.int32()), ("target", pa.int32())])),
)


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Which scenes make a benchmark (`jobs.scenes`)."""

    output: str = ""  # folder, local or any fsspec URL; gets records.parquet
    split: str = "test"  # train, validation, test
    count: int = 700  # records
    size: int = 128  # side of the pictures in px
    seed: int = 0  # another seed, other scenes
    categories: list[str] = field(default_factory=list)  # which of PIE-Bench's; empty: all ten, in its proportions

    def __post_init__(self) -> None:
        check_choice("split", self.split, SPLITS)
        check_range("count", self.count, 1, MAX_COUNT)
        check_range("size", self.size, 32, 2048)
        check_range("seed", self.seed, 0, MAX_SEED)
        for category in self.categories:
            check_choice("categories", category, CATEGORIES)


def scene_record(config: ScenesConfig, index: int, category: str) -> dict[str, Any]:
    """Return one record by column; `source_scene` and `target_scene` say in JSON what is seen."""
    edit = make_edit(benchmark_seed(config.split, config.seed, index), category)
    source, target = (render_scene(scene, config.size) for scene in (edit.source, edit.target))
    mask = edit_mask(edit, config.size)
    return {
        "id": f"{config.split}-{config.seed}-{index:06d}",
        "image": _coded(encode_image(source, "png")),
        "source_prompt": edit.source_prompt,
        "target_prompt": edit.target_prompt,
        "blend_words": [asdict(phrase) for phrase in edit.blend] or None,
        "category": f"{CATEGORIES.index(category)}_{category}",
        "instruction": edit.instruction,
        "reference_mask": _coded(encode_mask(mask)),
        "reference_image": _coded(encode_image(target, "png")),
        "target_determined": edit.determined,
        "source_scene": scene_to_json(edit.source),
        "target_scene": scene_to_json(edit.target),
        "edited_object": {"source": edit.source_index, "target": edit.target_index},
    }


def _coded(data: bytes) -> dict[str, Any]:
    return {"bytes": data, "path": None}


def scene_file(config: ScenesConfig) -> bytes:
    """Return all records as one Parquet file, byte for byte the same every time."""
    features = {each.name: feature_of(each.type) for each in FIELDS}
    schema = pa.schema(FIELDS, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    names = spread_categories(config.count, config.categories or CATEGORIES)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for start in range(0, config.count, GROUP_ROWS):
            rows = [scene_record(config, start + n, name) for n, name in enumerate(names[start : start + GROUP_ROWS])]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return buffer.getvalue()


def holds_scenes(place: Location) -> bool:
    """Whether a file holds records of drawn scenes, whichever."""
    try:
        return "source_scene" in read_footer(place).schema.names
    except BrokenParquet:
        return False
