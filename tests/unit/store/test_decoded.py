"""A few kilobytes that say a large value in every row are read in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.store import decoded
from pipelines.store.decoded import reader_of, row_bytes, rows_at_once
from pipelines.store.location import Location, locate
from pipelines.store.parquet import read_batches, take_rows

ROWS, VALUE = 64, 300_007


def write(folder: Path, kind: str, **options: Any) -> Location:
    """Write a file whose every row holds a value of 300 kB: once, each anew, or each as the one before."""
    value = pa.array([bytes(VALUE)] if kind != "noise" else [np.random.default_rng(0).bytes(VALUE)])
    column: Any = pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), value)
    more: dict[str, Any] = {}
    if kind == "prefix":
        column = column.cast(pa.binary())
        more = {"use_dictionary": False, "column_encoding": {"blob": "DELTA_BYTE_ARRAY"}}
    table = pa.table({"n": list(range(ROWS)), "blob": column})
    pq.write_table(table, folder / "a.parquet", store_schema=False, dictionary_pagesize_limit=2**30, **{**more, **options})
    return locate(str(folder / "a.parquet"))


@pytest.mark.parametrize(
    ("kind", "compression"),
    [("zeros", "zstd"), ("zeros", "none"), ("noise", "zstd"), ("noise", "none"), ("prefix", "zstd")],
)
def test_what_is_coded_once_is_decoded_a_few_rows_at_a_time(
    tmp_path: Path, kind: str, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoded, "READ_BYTES", 3 * VALUE)
    place = write(tmp_path, kind, compression=compression)
    assert Path(place.path).stat().st_size < 2 * VALUE
    batches = list(read_batches(place))
    assert sum(batch.num_rows for batch in batches) == ROWS and max(batch.num_rows for batch in batches) <= 3
    assert max(batch.num_rows for batch in read_batches(place, ["n"])) == ROWS  # the other column is not decoded
    assert take_rows(place, [7, 63]).column("n").to_pylist() == [7, 63]


def test_a_dictionarys_own_header_says_how_large_it_is(tmp_path: Path) -> None:
    """Where the other pages shrink a lot, the footer alone would make the dictionary of short texts as large as all of them."""
    texts = [f"{n:07d}" + "a" * 993 for n in range(3000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", dictionary_pagesize_limit=10_000, compression="zstd")
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    asked = []
    with (tmp_path / "a.parquet").open("rb") as stream:

        def read(start: int, count: int) -> bytes:
            asked.append(start)
            return reader_of(stream)(start, count)

        coarse, exact = row_bytes(read, group, 1e12), row_bytes(read, group, 1.0)
        assert asked == [group.column(0).dictionary_page_offset]
        assert coarse > 2_000_000 and exact == 1024 * 1004  # it is full after so many of them, with their lengths
        assert rows_at_once(reader_of(stream), group, 100, ["text"]) == 32
        assert rows_at_once(lambda start, count: b"\x15\x00", group, 100) == 11  # no header that can be read: by the footer


def test_values_that_share_no_beginnings_are_taken_by_their_average(tmp_path: Path) -> None:
    """Some writers code all texts and binaries so."""
    pictures = [np.random.default_rng(n).bytes(9973) for n in range(ROWS)]
    options: dict[str, Any] = {"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY"}}
    pq.write_table(pa.table({"image": pictures}), tmp_path / "a.parquet", compression="zstd", **options)
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    assert 9973 <= row_bytes(lambda start, count: b"", group, 1.0) < 11_000


def test_lists_hold_many_values_in_a_row(tmp_path: Path) -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 50, pa.int32()), pa.array([bytes(10_000)]))
    lists = pa.ListArray.from_arrays(pa.array([0, 25, 50], pa.int32()), values.cast(pa.binary()))
    pq.write_table(pa.table({"blobs": lists}), tmp_path / "a.parquet", dictionary_pagesize_limit=2**30)
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    assert row_bytes(lambda start, count: b"", group, 1e12) >= 25 * 10_000
