"""Near-duplicates across the whole data set, found by shuffles on Ray: never are all hashes in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from vimaedit.synthesis.likeness import distances, hash_bands

BEST_SCHEMA = pa.schema(
    [
        ("group", pa.int64()),
        ("part", pa.string()),
        ("part_row", pa.int32()),
        ("rank", pa.float64()),
        ("looks", pa.binary()),
        ("source_digest", pa.string()),
        ("target", pa.string()),
    ]
)
DROPPED_SCHEMA = pa.schema(
    [("group", pa.int64()), ("part", pa.string()), ("part_row", pa.int32()), ("like", pa.string()), ("like_rank", pa.float64())]
)


def explode_bands(batch: pa.Table, distance: int) -> pa.Table:
    """Give every row once for each band of its hash: rows within `distance` bits of each other share one."""
    rows, bands = [], []
    for row, looks in enumerate(batch.column("looks").to_pylist()):
        for number, band in enumerate(hash_bands(looks, distance + 1)):
            rows.append(row)
            bands.append(f"{number}:{band.hex()}")
    return batch.take(pa.array(rows, pa.int64())).append_column("band", pa.array(bands, pa.string()))


def find_duplicates(group: pa.Table, distance: int) -> pa.Table:
    """Return the rows of one band that lie within `distance` bits of a better one.

    A row is a duplicate if any better one is so near, whether or not that one is kept: so the answer depends neither on the
    band nor on an order. Edits of one picture to different prompts are none, however small the change.
    """
    rows = group.to_pylist()
    rows.sort(key=_order)
    codes = np.array([np.frombuffer(row["looks"], dtype=np.uint8) for row in rows]).reshape(len(rows), -1)
    dropped = []
    for index in range(1, len(rows)):
        row = rows[index]
        for better in np.flatnonzero(distances(codes[:index], codes[index]) <= distance):
            other = rows[better]
            if other["source_digest"] == row["source_digest"] and other["target"] != row["target"]:
                continue
            own = {name: row[name] for name in ("group", "part", "part_row")}
            dropped.append({**own, "like": f"{other['part']}#{other['part_row']}", "like_rank": other["rank"]})
            break
    return pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA)


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return -row["rank"], row["part"], row["part_row"]
