from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.store.listing import list_input, refuse_output_in_input
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
    with pytest.raises(ConfigError, match=r"got 'http://127.0.0.1:9/\*/a.parquet\?token=1', where there is no Parquet file"):
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
