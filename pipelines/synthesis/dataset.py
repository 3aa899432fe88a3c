"""The data set: what was kept, whole, as `<output>/data/<split>-00000-of-00042.parquet`; rejected candidates on request."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.cluster.session import set_engine
from pipelines.cluster.tasks import numbered, run_through
from pipelines.output.parts import open_result_writer
from pipelines.records.types import with_features
from pipelines.store.location import locate, put_atomic
from pipelines.store.parquet import take_rows, write_groups
from pipelines.synthesis.columns import DATA_FIELDS, REJECTED_FIELDS, SCORES
from pipelines.synthesis.filters import KEPT
from pipelines.synthesis.selection import SPLITS, Group, Selected, Selecting, clear_folder, read_decisions

SHARD_SECONDS = 1200.0
RECORD_BYTES = 4096  # beside its pictures


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One object of the data set: the records of a split in some groups, in order."""

    name: str
    split: str
    groups: tuple[int, ...]


def cut_shards(selected: Selected, shard_bytes: int) -> list[Shard]:
    """Fill shards with whole groups, in order, up to about `shard_bytes` each."""
    shards: list[Shard] = []
    for split in SPLITS:
        filled: list[list[int]] = []
        size = shard_bytes
        for group, (rows, in_bytes) in sorted(selected.kept[split].items()):
            if size >= shard_bytes:
                filled.append([])
                size = 0
            filled[-1].append(group)
            size += in_bytes + rows * RECORD_BYTES
        names = [f"{split}-{number:05d}-of-{len(filled):05d}.parquet" for number in range(len(filled))]
        shards += [Shard(name=name, split=split, groups=tuple(groups)) for name, groups in zip(names, filled, strict=True)]
    return shards


def write_dataset(selecting: Selecting, selected: Selected, passed: Mapping[str, pa.DataType]) -> list[Shard]:
    """Write `<output>/data` whole, and `<output>/rejected` where it is asked for; what stood there is removed first."""
    output = locate(selecting.output)
    set_engine(unit_seconds=SHARD_SECONDS)
    shards = cut_shards(selected, selecting.config.shard_mb * 10**6)
    clear_folder(output / "data")
    clear_folder(output / "rejected")
    tasks = [(f"data/{shard.name}", shard.split, shard.groups) for shard in shards]
    if selecting.config.keep_rejected:
        tasks += [(f"rejected/{group.name}", "", (index,)) for index, group in enumerate(selecting.groups)]
    if tasks:
        run_through(numbered(len(tasks), _write_objects, selecting=selecting, tasks=tasks, passed=dict(passed)))
    return shards


def _write_objects(
    batch: pa.Table,
    selecting: Selecting,
    tasks: Sequence[tuple[str, str, tuple[int, ...]]],
    passed: Mapping[str, pa.DataType],
) -> pa.Table:
    counts = []
    for index in batch.column("id").to_pylist():
        name, split, groups = tasks[index]
        fields = DATA_FIELDS if split else REJECTED_FIELDS
        schema = with_features([*fields, *(pa.field(column, kind) for column, kind in passed.items())])
        tables = (_group_rows(selecting, selecting.groups[group], split, schema) for group in groups)
        data, rows = _coded(tables, schema)
        put_atomic(locate(selecting.output) / name, data)
        counts.append(rows)
    return pa.table({"rows": counts})


def _coded(tables: Iterator[pa.Table], schema: pa.Schema) -> tuple[bytes, int]:
    """Code tables as one Parquet object, row groups of up to 100 MB."""
    buffer = io.BytesIO()
    with open_result_writer(buffer, schema) as writer:
        rows = write_groups(writer, tables)
    return buffer.getvalue(), rows


def _group_rows(selecting: Selecting, group: Group, split: str, schema: pa.Schema) -> pa.Table:
    """Build the records of a group that are in a split; "" stands for the candidates that were not kept."""
    wanted = [row for row in read_decisions(locate(selecting.output), group) if _belongs(row, split)]
    by_part: dict[str, dict[int, dict[str, Any]]] = {}
    for row in wanted:
        by_part.setdefault(row["part"], {})[row["part_row"]] = row
    tables = []
    for part, decisions in by_part.items():
        rows = take_rows(locate(selecting.output) / "candidates" / "data" / part, decisions)
        order = pa.array(sorted(decisions), pa.int64())
        records = [_record(row, decisions[number]) for number, row in zip(order.to_pylist(), rows.to_pylist(), strict=True)]
        own = pa.Table.from_pylist(records, schema=pa.schema(list(schema)[: len(records[0])]))
        others = [rows.column(name) for name in schema.names[len(own.schema) :]]
        tables.append(pa.table([*own.columns, *others], schema=schema))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _belongs(row: Mapping[str, Any], split: str) -> bool:
    return row["split"] == split if split else row["outcome"] != KEPT and row["part"] is not None


def _record(row: Mapping[str, Any], decision: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of the data set, without passed-through columns."""
    record = {
        "original_image": row["image"],
        "edit_prompt": row["instruction"],
        "edited_image": row["edited_image"],
        "original_prompt": row["source_prompt"],
        "edited_prompt": row["target_prompt"],
        "blend_words": row["blend_words_used"],
        "mask": row["edit_mask"],
        "scores": {name: decision[name] for name in SCORES},
        "source_image_id": decision["source_digest"],
        "overrides": row["candidate_overrides"],
        **{name: row[name] for name in ("category", "id", "pair_id", "caption_file", "caption_row", "candidate")},
        **{name: row[name] for name in ("source_seed", "seed", "steps", "method", "model", "model_digest", "config_digest")},
        "version": row["version"],
    }
    if decision["outcome"] != KEPT:
        record |= {"outcome": decision["outcome"], "reason": decision["reason"]}
    return record
