from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.store.listing import list_input, own_root, refuse_output_in_input
from pipelines.store.location import locate
from vimaedit.errors import ConfigError


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * 7)


def names_of(path: Path) -> list[str]:
    return [name for name, _ in list_input(str(path)).files]


def test_a_path_that_exists_is_taken_literally(tmp_path: Path) -> None:
    make(tmp_path, "sub[1]/a.parquet", "sub[1]/b?.parquet", "sub[1]/bc.parquet", "sub1/x.parquet", "sub2/wrong.parquet")
    assert names_of(tmp_path / "sub[1]") == ["a.parquet", "b?.parquet", "bc.parquet"]
    assert names_of(tmp_path / "sub[1]" / "b?.parquet") == ["b?.parquet"]
    assert names_of(tmp_path / "sub[1]" / "[a-b].parquet") == ["a.parquet"]
    assert names_of(tmp_path / "sub[2-9]") == ["sub2/wrong.parquet"]


def test_a_glob_takes_parquet_files_and_goes_into_folders(tmp_path: Path) -> None:
    make(tmp_path, "in/a.parquet", "in/b.pq", "in/notes.txt", "in/deep/c.parquet", "in/deep/d.txt", "in/_x/e.parquet")
    assert names_of(tmp_path / "in" / "*") == ["a.parquet", "deep/c.parquet"]
    assert names_of(tmp_path / "i?" / "*") == ["in/a.parquet", "in/deep/c.parquet"]
    assert names_of(tmp_path / "in" / "*.pq") == ["b.pq"]
    assert names_of(tmp_path / "in" / "**" / "*.parquet") == ["a.parquet", "deep/c.parquet"]
    with pytest.raises(
        ConfigError, match=r"input: got '.*\*.csv', where there is no Parquet file; allowed: a file, a folder or"
    ):
        list_input(str(tmp_path / "in" / "*.csv"))


def test_the_question_mark_of_a_web_address_is_no_glob() -> None:
    with pytest.raises(
        ConfigError, match=r"got 'http://127.0.0.1:9/\*/a.parquet\?token=\*\*\*', where there is no Parquet file"
    ):
        list_input("http://127.0.0.1:9/*/a.parquet?token=1")


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("in", "in"),
        ("in", "in/out"),
        ("in", "."),
        ("in", "link/out"),
        ("in/a.parquet", "in"),
        ("in/a.parquet", "."),
        ("in/*.parquet", "in"),
        ("in/**/*.parquet", "in/out"),
        ("in/*", "in/out"),
        ("*/*.parquet", "out"),
    ],
)
def test_an_output_among_the_input_is_refused(tmp_path: Path, given: str, output: str) -> None:
    make(tmp_path, "in/a.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(
        ConfigError, match=r"output: got .* with input=.*: one would lie in the other; allowed: a folder beside"
    ):
        refuse_output_in_input(locate(str(tmp_path / output)), str(tmp_path / given))


@pytest.mark.parametrize(
    ("given", "output"),
    [("in", "out"), ("in", "inside"), ("in/a.parquet", "in/out"), ("in/*.parquet", "in/out"), ("in", "memory://in/out")],
)
def test_an_output_beside_the_input_is_fine(tmp_path: Path, given: str, output: str) -> None:
    make(tmp_path, "in/a.parquet")
    refuse_output_in_input(locate(output if "://" in output else str(tmp_path / output)), str(tmp_path / given))


def test_remote_outputs_are_compared_by_their_paths() -> None:
    files = locate("memory://vault/in/a.parquet")
    files.fs.pipe_file(files.path, b"x")
    for output in ("memory://vault/in", "memory://vault/in/out", "memory://vault"):
        with pytest.raises(ConfigError, match="one would lie in the other"):
            refuse_output_in_input(locate(output), "memory://vault/in")
    refuse_output_in_input(locate("memory://vault/out"), "memory://vault/in")
    files.fs.rm("/vault", recursive=True)


def parquet(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": [1, 2, 3]}), path)


def test_parquet_is_known_by_its_end_and_the_rest_is_accounted_for(tmp_path: Path) -> None:
    root = tmp_path / "in"
    taken = ["a.parquet", "b.PARQUET", "c.pq", "deep/20261130_000123_00007_x", "table.csv"]
    for name in (*taken, "_temporary/d.parquet", ".e.parquet", "_metadata", "pictures/f.png"):
        parquet(root / name)
    make(root, "notes.txt", "deep/empty.crc", "_SUCCESS", ".f.parquet.crc", "bad.parquet")
    (root / "none").touch()
    (root / "link").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    found = list_input(str(root))
    assert [name for name, _ in found.files] == sorted([*taken, "bad.parquet"])
    told = {each.reason: (each.count, each.total, each.examples) for each in found.left_out}
    assert told == {
        "their names begin with a dot or an underscore": (2, 14, (".e.parquet", "_temporary/d.parquet")),
        "they are pictures, which records may name": (1, 14, ("pictures/f.png",)),
        "they are no regular files; links to folders are not followed": (2, 14, ("link", "pipe")),
        "they do not end as Parquet files do": (3, 14, ("deep/empty.crc", "none", "notes.txt")),
    }
    assert found.left_out[0].what == f"files in {root}"
    assert names_of(root / "*") == sorted([*taken, "bad.parquet"])
    assert names_of(root / "deep" / "2026*") == ["20261130_000123_00007_x"]


def test_a_folder_without_parquet_says_what_it_holds(tmp_path: Path) -> None:
    make(tmp_path, "a.csv", "b.csv", "c.csv", "d.csv")
    with pytest.raises(
        ConfigError, match=r"no Parquet file \(files in .*: 4 of 4 left out \(a.csv, b.csv, c.csv, ...\): they do not"
    ):
        list_input(str(tmp_path))


def test_a_folder_that_may_not_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "in/a.parquet", "in/closed/b.parquet")
    scandir = os.scandir

    def refused(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(
        ConfigError, match=r"input: got .*, where .*closed cannot be read \(Permission denied\); allowed: files and"
    ):
        list_input(str(tmp_path / "in"))


def test_several_inputs_are_one(tmp_path: Path) -> None:
    for name in ("one/a.parquet", "one/deep/b.pq", "two/c.parquet", "two/d.parquet"):
        parquet(tmp_path / name)
    make(tmp_path, "one/notes.txt")
    found = list_input([str(tmp_path / "two" / "[c]*.parquet"), str(tmp_path / "one"), f"file://{tmp_path}/two/d.parquet"])
    assert found.root.path == str(tmp_path)
    assert [name for name, _ in found.files] == ["one/a.parquet", "one/deep/b.pq", "two/c.parquet", "two/d.parquet"]
    assert [each.examples for each in found.left_out] == [("notes.txt",)]
    roots = [root.url for root in found.roots]
    assert [own_root(found.root.url, roots, name) for name, _ in found.files] == [str(tmp_path / "one")] * 2 + [
        str(tmp_path / "two")
    ] * 2
    beside = list_input([f"{tmp_path}/two/../two/c.parquet", str(tmp_path / "two" / "d.parquet")])
    assert [name for name, _ in beside.files] == ["c.parquet", "d.parquet"]
    assert list_input([str(tmp_path / "one")]) == list_input(str(tmp_path / "one"))


def test_inputs_that_are_no_whole_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "in" / "a.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for other in ("in", "in/a.parquet", "in/../in/*.parquet", "link"):
        with pytest.raises(ConfigError, match=r"input: got \[.*\], where .*a.parquet is meant twice; allowed: every file once"):
            list_input([str(tmp_path / "in"), str(tmp_path / other)])
    other = locate("memory://vault/in/a.parquet")
    other.fs.pipe_file(other.path, b"PAR1")
    with pytest.raises(ConfigError, match="which lie in several stores; allowed: places in one"):
        list_input([str(tmp_path / "in"), "memory://vault/in"])
    other.fs.rm("/vault", recursive=True)
    for inputs in ([], [str(tmp_path / "in"), ""]):
        with pytest.raises(ConfigError, match="allowed: a path or URL, or a list of them"):
            list_input(inputs)


def test_an_output_among_a_glob_is_found_through_links(tmp_path: Path) -> None:
    make(tmp_path, "in/a.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for given in ([str(tmp_path / "in" / "*")], [str(tmp_path / "x.parquet"), str(tmp_path / "in" / "**" / "*.parquet")]):
        with pytest.raises(ConfigError, match="one would lie in the other"):
            refuse_output_in_input(locate(str(tmp_path / "link" / "out")), given)


def test_keys_of_a_store_are_no_paths() -> None:
    files = [locate(f"memory://vault{name}") for name in ("/set/x//y.parquet", "/set//z", "/set/a#b?c%20.parquet")]
    for file in files:
        file.fs.pipe_file(file.path, b"PAR1....PAR1")
    assert [name for name, _ in list_input("memory://vault/set").files] == ["/z", "a#b?c%20.parquet", "x//y.parquet"]
    for file in files:
        found = list_input(file.url)
        assert [(found.root / name).path for name, _ in found.files] == [file.path]
    assert list_input("memory://vault/set//z").files == [("/z", 12)]
    files[0].fs.rm("/vault", recursive=True)


def test_a_file_belongs_to_the_input_that_it_lies_in() -> None:
    roots = ("s3://one/in", "s3://two", "s3://two/deep")
    assert own_root("s3://", roots, "one/in/a.parquet") == "s3://one/in"
    assert own_root("s3://", roots, "two/a.parquet") == "s3://two"
    assert own_root("s3://", roots, "two/deep/x/a.parquet") == "s3://two/deep"
    assert own_root("/data", ("/data/a", "/data/b"), "b/x.parquet") == "/data/b"
    assert own_root("/data", ("/data/a",), "other.parquet") == "/data"
