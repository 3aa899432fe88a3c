"""Tiny records for long runs."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.store.location import locate, put_atomic

TARGETS = ("a blue cat on the lawn", "a red dog on the lawn")


def write_input(url: str, rows: int, file_rows: int) -> None:
    """Write records with pictures of 32 px, each another one, in files of so many rows."""
    for first in range(0, rows, file_rows):
        numbers = range(first, min(first + file_rows, rows))
        columns = {
            "image": pa.array([picture(number) for number in numbers], pa.binary()),
            "source_prompt": ["a red cat on the lawn"] * len(numbers),
            "target_prompt": [TARGETS[number % 2] for number in numbers],
        }
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        put_atomic(locate(url) / f"{first // file_rows:05d}.parquet", buffer.getvalue())


def picture(number: int) -> bytes:
    """A coded picture, the same for the same number."""
    blobs = np.random.default_rng(number).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blobs).resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()
