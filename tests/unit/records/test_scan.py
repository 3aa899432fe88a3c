from __future__ import annotations

import os
import re
import socket
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.records import scan as inputs
from pipelines.records.scan import REFERENCED_BYTES, scan_inputs
from vimaedit.errors import ConfigError


def write(path: Path, **extra: pa.Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": pa.array([b"x"] * 3), "source_prompt": pa.array(["a"] * 3), "target_prompt": pa.array(["b"] * 3)}
    pq.write_table(pa.table({**columns, **extra}), path)


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("", ["a.parquet", "sub/b.parquet"]),
        ("a.parquet", ["a.parquet"]),
        ("*.parquet", ["a.parquet"]),
        ("su?/b*.parquet", ["sub/b.parquet"]),
    ],
)
def test_file_folder_and_glob_give_sorted_relative_paths(tmp_path: Path, pattern: str, files: list[str]) -> None:
    write(tmp_path / "sub" / "b.parquet")
    write(tmp_path / "a.parquet")
    write(tmp_path / "_temporary" / "c.parquet")
    (tmp_path / "notes.txt").write_text("no data")
    found = scan_inputs(str(tmp_path / pattern), {})
    assert [file.path for file in found.files] == files
    assert [file.rows for file in found.files] == [3] * len(files)


def test_the_footer_digest_says_whether_a_file_changed(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    first = scan_inputs(str(tmp_path), {}).files[0].footer_digest
    write(tmp_path / "a.parquet")
    assert scan_inputs(str(tmp_path), {}).files[0].footer_digest == first
    write(tmp_path / "a.parquet", extra=pa.array([1, 2, 3]))
    assert scan_inputs(str(tmp_path), {}).files[0].footer_digest != first


def test_a_footer_longer_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", **{f"column_{number}_{'x' * 200}": pa.array([1, 2, 3]) for number in range(211)})
    found = scan_inputs(str(tmp_path), {})
    assert len(found.columns.passed) == 211 and found.files[0].error is None


def test_column_types_read_by_the_edit_may_differ_between_files_and_others_must_fit(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", score=pa.array([1, 2, 3], pa.int32()))
    write(tmp_path / "b.parquet", score=pa.array([1.5, 2, 3], pa.float64()), image=pa.array(["p", "q", "r"]))
    assert scan_inputs(str(tmp_path), {}).schema.field("score").type == pa.float64()
    write(tmp_path / "c.parquet", score=pa.array(["x", "y", "z"]))
    with pytest.raises(
        ConfigError, match=r"input: got column 'score' as string in c.parquet and as double before; allowed: one type"
    ):
        scan_inputs(str(tmp_path), {})


def test_no_readable_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"where there is no Parquet file; allowed: a file, a folder or a glob"):
        scan_inputs(str(tmp_path / "nowhere"), {})
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing else")
    with pytest.raises(
        ConfigError, match=r"with 1 Parquet files, none of them readable; bad.parquet: the file does not end as a Parquet"
    ):
        scan_inputs(str(tmp_path), {})
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + b"\x00" * 50 + (40).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(ConfigError, match=r"none of them readable; bad.parquet: \w+"):
        scan_inputs(str(tmp_path), {})


def test_passed_columns_fit_together_without_loss_or_not_at_all(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", score=pa.array([2**60 + 1] * 3), kind=pa.array(["x", "y", "x"]).dictionary_encode())
    write(tmp_path / "b.parquet", kind=pa.array(["x", "y", "z"]))
    schema = scan_inputs(str(tmp_path), {}).schema
    assert (schema.field("score").type, schema.field("kind").type) == (pa.int64(), pa.string())
    write(tmp_path / "c.parquet", score=pa.array([0.5] * 3))
    text = (
        "input: got column 'score' as double in c.parquet and as int64 before; "
        "allowed: one type in all files, or types of which one holds all values of both"
    )
    with pytest.raises(ConfigError, match=re.escape(text)):
        scan_inputs(str(tmp_path), {})


def test_a_passed_column_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", views=pa.array([[[1]]] * 3, pa.list_(pa.list_view(pa.int8()))))
    with pytest.raises(
        ConfigError, match=r"'views' as list<.*list_view<.* in a.parquet, which cannot be passed through; allowed: num"
    ):
        scan_inputs(str(tmp_path), {})


@pytest.mark.parametrize("name", ["image", "target_prompt", "seed", "other"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    names = ["image", "source_prompt", "target_prompt", name, name]
    table = pa.Table.from_arrays([pa.array(["x"])] * 5, names=names)
    pq.write_table(table, tmp_path / "a.parquet")
    count = names.count(name)
    with pytest.raises(ConfigError, match=f"input: got {count} columns named '{name}' in a.parquet; allowed: one of each name"):
        scan_inputs(str(tmp_path), {})


def test_targets_that_cannot_be_counted_make_their_file_unreadable(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", target_prompt=pa.array([["p", "q"]] * 3))
    write(tmp_path / "b.parquet")
    chunk = pq.read_metadata(tmp_path / "a.parquet").row_group(0).column(2)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xee" * chunk.total_compressed_size
    (tmp_path / "a.parquet").write_bytes(data)
    found = scan_inputs(str(tmp_path), {})
    assert found.files[0].error is not None and "OSError" in found.files[0].error
    assert [(file.rows, file.error is None) for file in found.files] == [(0, False), (3, True)]


def test_lists_as_views_are_lists(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", target_prompt=pa.array([["p", "q"], None, []], pa.list_view(pa.string())))
    found = scan_inputs(str(tmp_path), {})
    assert found.files[0].target_is_list and found.counts["a.parquet"].tolist() == [2, 1, 1]


def test_pictures_that_records_name_have_an_assumed_size(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", image=pa.array(["a.png", "b.png", None]))
    found = scan_inputs(str(tmp_path), {})
    assert found.row_bytes >= REFERENCED_BYTES and found.column_bytes["image"] >= 3 * REFERENCED_BYTES
    write(tmp_path / "a.parquet", image=pa.array([{"bytes": None, "path": "a.png"}, {"bytes": b"x", "path": None}, None]))
    assert 2 * REFERENCED_BYTES <= scan_inputs(str(tmp_path), {}).column_bytes["image"] < 3 * REFERENCED_BYTES
    write(tmp_path / "a.parquet")
    assert scan_inputs(str(tmp_path), {}).row_bytes < 1000


def test_a_large_row_group_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet")
    assert scan_inputs(str(tmp_path), {}).warnings == ()
    monkeypatch.setattr(inputs, "LARGE_GROUP_BYTES", 100)
    (warning,) = scan_inputs(str(tmp_path), {}).warnings
    assert warning.startswith("input: a.parquet has a row group of 0.0 GB, and 1 of 1 files have one of more than")
    assert "rewrite the input with row groups of about 100 MB" in warning


def reason(folder: Path) -> str:
    """Scan a folder of a good file and another one, and return why the other cannot be planned."""
    write(folder / "a.parquet")
    found = scan_inputs(str(folder), {})
    (error,) = [file.error for file in found.files if file.error is not None]
    assert [file.rows for file in found.files if file.error is None] == [3]
    return error


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "nowhere", "circle"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "b.parquet"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(place.name)
    else:
        place.symlink_to({"device": "/dev/zero", "nowhere": "c.parquet", "circle": "b.parquet"}[kind])
    expected = "it is a link that leads to no file"
    if kind in ("pipe", "socket", "device"):
        expected = "it is a pipe, socket or device, not a regular file"
    assert reason(tmp_path) == expected


def test_a_file_whose_name_cannot_be_written_costs_one_row(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet")
    os.rename(tmp_path / "x.parquet", os.fsencode(tmp_path) + b"/b-\xff.parquet")
    assert reason(tmp_path) == "its name is not UTF-8; rename it"
    assert [file.path for file in scan_inputs(str(tmp_path), {}).files] == ["a.parquet", "b-\\xff.parquet"]


def test_footers_that_cannot_be_true_are_not_believed(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet")
    data = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[:-4] + b"PARE")
    assert reason(tmp_path) == "its footer is encrypted"
    (tmp_path / "b.parquet").write_bytes(data[:-8] + struct.pack("<I", 2**32 - 1) + b"PAR1")
    assert reason(tmp_path) == (
        f"its footer is said to have 4294967295 bytes; the file has {len(data)}, and 268435456 are read at most"
    )
    with (tmp_path / "b.parquet").open("wb") as stream:
        stream.truncate(3 * 10**9)
        stream.seek(0, os.SEEK_END)
        stream.write(struct.pack("<I", 2 * 10**9) + b"PAR1")
    assert "said to have 2000000000 bytes" in reason(tmp_path)


@pytest.mark.parametrize(
    ("rows", "text"), [(-3, "its footer says -3 rows, its row groups -3"), (10**12, "values of a column in")]
)
def test_counts_that_cannot_be_true_are_not_planned(tmp_path: Path, rows: int, text: str) -> None:
    def zigzag(number: int) -> bytes:
        number, parts = (2 * number if number >= 0 else -2 * number - 1), []
        while number > 0x7F:
            parts.append(number & 0x7F | 0x80)
            number >>= 7
        return bytes([0x16, *parts, number])  # 0x16: a field of 64 bits

    write(tmp_path / "b.parquet")
    data = (tmp_path / "b.parquet").read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[start:-8].replace(zigzag(3), zigzag(rows))
    (tmp_path / "b.parquet").write_bytes(data[:start] + footer + struct.pack("<I", len(footer)) + b"PAR1")
    assert text in reason(tmp_path)
