"""One writer and one reader: row groups, single rows, and files read over interruptions of the network."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.store import location as storage
from pipelines.store import parquet
from pipelines.store.location import Location, locate, new_file
from pipelines.store.parquet import (
    BrokenParquet,
    open_writer,
    put_table,
    read_batches,
    read_footer,
    read_groups,
    read_table,
    row_groups,
    take_rows,
    write_groups,
)

BLOBS = [np.random.default_rng(n).bytes(9999) for n in range(53)]
TABLE = pa.table({"n": list(range(53)), "text": [f"t{n}" for n in range(53)], "blob": BLOBS})


@pytest.fixture
def place(tmp_path: Path) -> Location:
    """A file of 53 rows in groups of 10."""
    pq.write_table(TABLE, tmp_path / "a.parquet", row_group_size=10)
    return locate(str(tmp_path / "a.parquet"))


@pytest.fixture
def interruptions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let every 13th read of a remote file end in a reset; counts the reads."""
    reads: list[int] = []

    class Interrupted(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            reads.append(1)
            if len(reads) % 13 == 0:
                raise ConnectionResetError("the peer is gone")
            return super().read(size)

    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Location, "is_local", property(lambda place: False))
    monkeypatch.setattr(parquet, "open_reader", lambda place: Interrupted(place.path))
    yield reads
    assert len(reads) > 13


def test_row_groups_hold_at_most_so_many_rows_and_bytes() -> None:
    table = pa.table({"blob": [bytes(10)] * 23})
    own = table.slice(0, 1).nbytes
    assert [group.num_rows for group in row_groups(table, max_rows=7, max_bytes=10**9)] == [7, 7, 7, 2]
    assert [group.num_rows for group in row_groups(table, max_rows=100, max_bytes=5 * own)] == [5, 5, 5, 5, 3]
    assert [group.num_rows for group in row_groups(table, max_rows=100, max_bytes=1)] == [1] * 23
    assert pa.concat_tables(row_groups(table, max_rows=7, max_bytes=10**9)) == table
    assert list(row_groups(table.slice(0, 0))) == []


@pytest.mark.parametrize(("full_rows", "sizes"), [(20, [20, 20, 13]), (25, [30, 23]), (10**9, [53])])
def test_small_tables_share_row_groups(tmp_path: Path, full_rows: int, sizes: list[int]) -> None:
    with open_writer(str(tmp_path / "a.parquet"), TABLE.schema) as writer:
        assert write_groups(writer, (TABLE.slice(start, 10) for start in range(0, 53, 10)), full_rows) == 53
    metadata = read_footer(locate(str(tmp_path / "a.parquet")))
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == sizes
    assert {metadata.row_group(0).column(index).compression for index in range(3)} == {"ZSTD"}


def test_a_table_comes_back_from_any_store() -> None:
    place = locate("memory://tables/a.parquet")
    put_table(place, TABLE)
    assert read_table(place) == TABLE
    assert read_table(place, ["text"]) == TABLE.select(["text"])
    assert read_footer(place).num_rows == 53


@pytest.mark.parametrize("rows", [7, 10, 16, 65_536])
def test_batches_are_read_in_order_without_columns_that_are_not_there(place: Location, rows: int) -> None:
    batches = list(read_batches(place, ["n", "absent"], rows=rows))
    assert pa.Table.from_batches(batches) == TABLE.select(["n"])
    assert max(batch.num_rows for batch in batches) <= rows


def test_an_empty_file_has_no_batches_and_no_groups(tmp_path: Path) -> None:
    pq.write_table(TABLE.slice(0, 0), tmp_path / "empty.parquet")
    place = locate(str(tmp_path / "empty.parquet"))
    assert list(read_batches(place)) == []
    assert sum(group.num_rows for group in read_groups(place)) == 0


@pytest.mark.parametrize("rows", [[52, 3, 19, 20, 3], [0], list(range(53))])
def test_single_rows_are_read_by_their_row_groups(place: Location, rows: list[int]) -> None:
    assert take_rows(place, rows, ["text", "absent"]) == TABLE.select(["text"]).take(pa.array(sorted(set(rows))))


def test_row_groups_without_a_wanted_row_are_not_read(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    size = Path(place.path).stat().st_size
    read: list[int] = []

    class Counted(io.FileIO):
        def read(self, count: int | None = -1) -> bytes:
            data = super().read(count)
            read.append(len(data))
            return data

    monkeypatch.setattr(parquet, "open_reader", lambda place: Counted(place.path))
    assert take_rows(place, [25], ["blob"]).column("blob").to_pylist() == [BLOBS[25]]
    assert sum(read) < size / 2


@pytest.mark.parametrize(
    "read", [functools.partial(read_batches, rows=3), functools.partial(read_batches, rows=16), read_groups]
)
def test_an_interruption_repeats_no_row_and_loses_none(place: Location, read: Any, interruptions: list[int]) -> None:
    found = [piece if isinstance(piece, pa.Table) else pa.Table.from_batches([piece]) for piece in read(place)]
    assert pa.concat_tables(found) == TABLE


def test_single_rows_and_footers_are_read_over_interruptions(place: Location, interruptions: list[int]) -> None:
    assert take_rows(place, [52, 3, 40]).column("n").to_pylist() == [3, 40, 52]
    assert [read_footer(place).num_rows for _ in range(13)] == [53] * 13


def test_a_reader_that_is_given_up_closes_its_file(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def open_reader(place: Location) -> Any:
        opened.append(open(place.path, "rb"))
        return opened[-1]

    monkeypatch.setattr(parquet, "open_reader", open_reader)
    for read in (functools.partial(read_batches, rows=3), read_groups):
        pieces = read(place)
        next(pieces)
        pieces.close()
    assert len(opened) == 2 and all(stream.closed for stream in opened)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no Parquet at all, but of some length"])
def test_what_is_no_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(BrokenParquet, match=r"^got .*/a.parquet, which cannot be read \(.*\); allowed: a whole Parquet file$"):
        read_footer(locate(str(tmp_path / "a.parquet")))
    with pytest.raises(BrokenParquet, match="FileNotFoundError"):
        read_footer(locate(str(tmp_path / "absent.parquet")))


def test_what_the_infrastructure_does_is_no_broken_file(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(place: Location) -> Any:
        raise PermissionError(13, "403")

    monkeypatch.setattr(parquet, "open_reader", refused)
    with pytest.raises(PermissionError):
        read_footer(place)


@pytest.mark.parametrize("url", ["{folder}/data/a.bin", "memory://new_files/data/a.bin"])
def test_a_file_that_is_not_finished_does_not_appear(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.tempfile, "gettempdir", lambda: str(tmp_path))
    place = locate(url.format(folder=tmp_path))
    with pytest.raises(RuntimeError, match="stopped"), new_file(place) as path:
        Path(path).write_bytes(b"half")
        raise RuntimeError("stopped")
    assert not place.fs.exists(place.path)
    with new_file(place) as path:
        Path(path).write_bytes(b"whole")
        assert not path.endswith(".bin") and not place.fs.exists(place.path)
    assert place.fs.cat_file(place.path) == b"whole"
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if name.endswith(".tmp")]
