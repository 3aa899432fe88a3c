from __future__ import annotations

import os
import re
import socket
import struct
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import dataset

from pipelines.records import scan as inputs
from pipelines.records.read import read_rows
from pipelines.records.scan import REFERENCED_BYTES, scan_inputs
from pipelines.records.types import to_written
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


def test_values_in_folder_names_are_columns_as_pyarrow_gives_them(tmp_path: Path) -> None:
    names = (
        "style=oil%20paint/n=07/a.parquet",
        "style=__HIVE_DEFAULT_PARTITION__/n=-1/sub/b.parquet",
        "style=x=y/n=3/my%20key=1.5/c.parquet",
        "d.parquet",
    )
    for name in names:
        write(tmp_path / "in" / name)
    found = scan_inputs(str(tmp_path / "in"), {})
    theirs = dataset.dataset(tmp_path / "in", partitioning="hive").to_table().select(["style", "n", "my key"])
    ours: dict[str, list[object]] = {field.name: [] for field in theirs.schema}
    for file in sorted(found.files, key=lambda file: file.path):
        for rows in read_rows(found.root, file, 0, found.int96):
            for field in theirs.schema:
                assert isinstance(rows.content, pa.RecordBatch) and found.schema.field(field.name).type == field.type
                has = field.name in rows.content.schema.names
                column = to_written(rows.content.column(field.name), field.type) if has else pa.nulls(rows.count, field.type)
                ours[field.name] += column.to_pylist()
    assert ours == theirs.to_pydict()
    assert found.columns.passed == {"style": "style", "n": "n", "my key": "my key"} and found.warnings == ()
    one = scan_inputs(str(tmp_path / "in" / names[0]), {})
    assert [field.name for field in one.schema][-2:] == ["style", "n"]


def test_a_column_of_a_file_wins_over_its_folders_name_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path / "style=7" / "a.parquet", style=pa.array(["x", "y", "z"]))
    write(tmp_path / "style=8" / "b.parquet")
    found = scan_inputs(str(tmp_path), {})
    assert found.schema.field("style").type == pa.string()
    assert found.warnings == (
        "input: column 'style' stands in 1 of 2 files, style=7/a.parquet the first, and in the names of their folders; the files' "
        "values are taken",
    )
    read = [next(read_rows(found.root, file, 0, "ns")).content for file in found.files]
    assert [batch.column("style").to_pylist() for batch in read] == [["x", "y", "z"], ["8"] * 3]
    write(tmp_path / "style=8" / "a.parquet", style=pa.array([1.5, 2.5, 3.5]))
    (tmp_path / "style=7" / "a.parquet").unlink()
    write(tmp_path / "style=oil" / "c.parquet")
    with pytest.raises(
        ConfigError, match="input: got column 'style' as 'oil' in the name of a folder of style=oil/c.parquet and as double"
    ):
        scan_inputs(str(tmp_path), {})


def test_two_values_of_a_column_in_the_names_of_folders_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "n=7" / "n=8" / "a.parquet")
    with pytest.raises(
        ConfigError, match="input: got column 'n' as '7' and '8' in the names of the folders of n=7/n=8/a.parquet"
    ):
        scan_inputs(str(tmp_path), {})


def test_the_seed_of_a_folder_is_a_seed(tmp_path: Path) -> None:
    write(tmp_path / "seed=7" / "a.parquet")
    assert scan_inputs(str(tmp_path), {}).columns.edit["seed"] == "seed"


FAR, NEAR = datetime(9999, 12, 31, 1, 2, 3, 456789), datetime(2026, 1, 1)


def write_int96(path: Path, *times: datetime | None) -> None:
    nested = pa.array([[{"at": time}] for time in times], pa.list_(pa.struct([("at", pa.timestamp("us"))])))
    columns = {name: pa.array(["x"] * len(times)) for name in ("image", "source_prompt", "target_prompt")}
    table = pa.table({**columns, "at": pa.array(times, pa.timestamp("us")), "nested": nested})
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, row_group_size=2)


def test_times_of_96_bits_keep_their_values(tmp_path: Path) -> None:
    write_int96(tmp_path / "a.parquet", NEAR, None, FAR)
    write_int96(tmp_path / "b.parquet", NEAR)
    found = scan_inputs(str(tmp_path), {})
    assert found.int96 == "us" and found.schema.field("at").type == pa.timestamp("us")
    assert found.warnings == (
        "input: times of 96 bits are read in microseconds, since some lie beyond what nanoseconds can say",
    )
    batches = [rows.content for file in found.files for rows in read_rows(found.root, file, 0, found.int96)]
    read = [row for batch in batches if isinstance(batch, pa.RecordBatch) for row in batch.to_pylist()]
    assert [row["at"] for row in read] == [NEAR, None, FAR, NEAR]
    assert [row["nested"][0]["at"] for row in read] == [NEAR, None, FAR, NEAR]
    (tmp_path / "a.parquet").unlink()
    near = scan_inputs(str(tmp_path), {})
    assert near.int96 == "ns" and near.schema.field("at").type == pa.timestamp("ns") and near.warnings == ()


@pytest.mark.parametrize(
    ("name", "column", "allowed"),
    [
        ("source_prompt", pa.array([1, 2, 3]), "text"),
        ("target_prompt", pa.array([b"a"] * 3), "text, or lists of texts"),
        ("image", pa.array([[1]] * 3), "binary, text, or a struct of bytes and path"),
        ("image", pa.nulls(3), "binary, text, or a struct of bytes and path"),
        (
            "id",
            pa.array([1, 2, 3], pa.timestamp("ms")),
            "text, integers, UUIDs, or decimals and floating-point numbers that are",
        ),
        ("seed", pa.array([True] * 3), "integers, or decimals, floating-point numbers and texts that are whole numbers"),
        ("overrides", pa.array(["x"] * 3), "a struct"),
        ("blend_words", pa.array([[1]] * 3), "text, or lists of structs of source and target"),
    ],
)
def test_a_type_that_no_row_can_have_is_known_from_the_footers(
    tmp_path: Path, name: str, column: pa.Array, allowed: str
) -> None:
    write(tmp_path / "a.parquet", **{name: column})
    text = f"input: got column '{name}' as {str(column.type).replace('item', 'element')} in a.parquet; allowed: {allowed}"
    assert [reason[: len(text)] for reason in scan_inputs(str(tmp_path), {}).impossible.values()] == [text]
    write(tmp_path / "b.parquet")
    found = scan_inputs(str(tmp_path), {})
    assert found.impossible == {} and any("; the rows of 1 of 2 files are rejected" in warning for warning in found.warnings)


def test_a_column_of_nulls_makes_no_row_impossible_whatever_its_type(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", blend_words=pa.nulls(3, pa.int32()), id=pa.nulls(3), seed=pa.nulls(3, pa.date32()))
    assert scan_inputs(str(tmp_path), {}).impossible == {}


def test_plainer_types_are_told(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", kind=pa.array(["x", "y", "x"]).dictionary_encode(), n=pa.array([1, 2, 3]))
    (warning,) = scan_inputs(str(tmp_path), {}).warnings
    assert warning == (
        "input columns are written in plainer types, with the same values: kind (dictionary<values=string, indices=int32, "
        "ordered=0> as string)"
    )


def test_what_is_no_parquet_is_left_out_and_told(tmp_path: Path) -> None:
    write(tmp_path / "a.pq")
    (tmp_path / "notes.txt").write_text("no data")
    found = scan_inputs(str(tmp_path), {})
    assert [file.path for file in found.files] == ["a.pq"]
    assert [(each.count, each.total, each.examples) for each in found.left_out] == [(1, 2, ("notes.txt",))]
