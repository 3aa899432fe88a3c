from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.inputs import scan_inputs
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
