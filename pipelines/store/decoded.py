"""How large rows of Parquet become once they are decoded: a few kilobytes may say the same large value in every row."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import IO, Any

import pyarrow.parquet as pq

READ_BYTES = 32 * 1024 * 1024  # decoded at a time at most, or one row
HELD_BYTES = 512 * 1024 * 1024  # of decoded rows that are held together, or one batch
HEADER_BYTES = 64  # hold what is read of a page's header
TEXTS = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
DICTIONARY_PAGE = 2
PREFIXED = "DELTA_BYTE_ARRAY"
USUAL_SHRINKING = 20  # of texts; coded pictures do not shrink at all
INTEGER_FIELD = 0x15  # of Thrift's compact protocol: the next field, an integer of 32 bits

Read = Callable[[int, int], bytes]


def reader_of(stream: IO[bytes]) -> Read:
    """Return what reads so many bytes of a stream from a place on."""

    def read(start: int, count: int) -> bytes:
        stream.seek(start)
        return stream.read(count)

    return read


def rows_at_once(read: Read, group: pq.RowGroupMetaData, rows: int, columns: Collection[str] | None = None) -> int:
    """Say how many rows of a row group, at most so many, may be decoded at a time."""
    return max(1, min(rows, int(READ_BYTES / max(1.0, row_bytes(read, group, READ_BYTES / rows, columns)))))


def row_bytes(read: Read, group: pq.RowGroupMetaData, enough: float, columns: Collection[str] | None = None) -> float:
    """Bound the bytes of a decoded row of a row group by its metadata: columns on the average, but values that are coded once for many
    rows by the largest that there may be.

    Where that comes to more than `enough`, the headers of dictionaries are read, which say how large these are.
    """
    chunks = [group.column(index) for index in range(group.num_columns)]
    chunks = [chunk for chunk in chunks if columns is None or _name(chunk) in columns]
    found = sum(_bound(chunk, group.num_rows, _footer_bound(chunk)) for chunk in chunks)
    if found > enough:
        found = sum(_bound(chunk, group.num_rows, _header_bound(read, chunk)) for chunk in chunks)
    return float(found)


def _name(chunk: Any) -> str:
    return str(chunk.path_in_schema).split(".")[0]


def _bound(chunk: Any, rows: int, largest: int) -> float:
    rows = max(1, rows)
    return max(float(chunk.total_uncompressed_size) / rows, largest * max(1.0, float(chunk.num_values) / rows))


def _footer_bound(chunk: Any) -> int:
    """Bound a chunk's largest value that is not coded for each row by what the footer says; 0 where all are.

    What is compressed does not grow, so a dictionary has at most what all pages have less what the others have on the disk.
    """
    if chunk.physical_type not in TEXTS:
        return 0
    if PREFIXED in chunk.encodings:  # each value may begin as the one before, which pays where they shrink a lot
        shrinks = chunk.total_uncompressed_size > USUAL_SHRINKING * chunk.total_compressed_size
        return int(chunk.total_uncompressed_size) if shrinks else 0
    if not chunk.has_dictionary_page:
        return 0
    on_disk = max(0, chunk.data_page_offset - chunk.dictionary_page_offset)
    return int(
        min(chunk.total_uncompressed_size, max(on_disk, chunk.total_uncompressed_size - chunk.total_compressed_size + on_disk))
    )


def _header_bound(read: Read, chunk: Any) -> int:
    """As `_footer_bound`, by the header of the dictionary itself."""
    bound = _footer_bound(chunk)
    if not bound or not chunk.has_dictionary_page or PREFIXED in chunk.encodings:
        return bound
    header = read(chunk.dictionary_page_offset, HEADER_BYTES)
    kind, position = _integer(header, 0)
    size, _ = _integer(header, position)
    return size if kind == DICTIONARY_PAGE and size >= 0 else int(chunk.total_uncompressed_size)


def _integer(header: bytes, position: int) -> tuple[int, int]:
    """Read a field that is an integer; -1 where another stands there. Returns it, and where the next field begins."""
    if header[position : position + 1] != bytes([INTEGER_FIELD]):
        return -1, position
    value = shift = 0
    for end in range(position + 1, len(header)):
        value |= (header[end] & 0x7F) << shift
        shift += 7
        if not header[end] & 0x80:
            return (value >> 1) ^ -(value & 1), end + 1
    return -1, position
