"""One Parquet file written row group by row group, which appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.store.location import Location, retry_remote


class RecordFile:
    """Writes to a temporary file; `commit` puts it in its place, leaving without `commit` removes it."""

    def __init__(self, place: Location, schema: pa.Schema) -> None:
        self._place = place
        self._schema = schema
        folder, name = os.path.split(place.path)
        if place.is_local:
            os.makedirs(folder, exist_ok=True)
        # Beside its place, so that it can be renamed; its name does not end as data files do.
        self._temporary = os.path.join(folder if place.is_local else tempfile.gettempdir(), f".{name}.{uuid.uuid4().hex}.tmp")

    def __enter__(self) -> RecordFile:
        self._stream = open(self._temporary, "wb")
        self._writer = pq.ParquetWriter(self._stream, self._schema, compression="zstd")
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        if os.path.exists(self._temporary):
            os.unlink(self._temporary)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows as one row group."""
        self._writer.write_table(pa.Table.from_pylist(list(rows), schema=self._schema), row_group_size=len(rows))

    def commit(self) -> None:
        """Finish the file and put it in its place."""
        self._close()
        if self._place.is_local:
            os.replace(self._temporary, self._place.path)
        else:
            retry_remote(self._place, lambda: self._place.fs.put_file(self._temporary, self._place.path))

    def _close(self) -> None:
        if self._stream.closed:
            return
        self._writer.close()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
