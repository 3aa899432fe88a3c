from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from pipelines import storage
from pipelines.storage import exists, is_transient, list_files, locate, put_atomic, read_bytes, retry


def test_a_local_put_leaves_one_whole_file(tmp_path: Path) -> None:
    place = locate(str(tmp_path / "data" / "part.parquet"))
    put_atomic(place, b"first")
    put_atomic(place, b"second, longer")
    assert (tmp_path / "data" / "part.parquet").read_bytes() == b"second, longer"
    assert os.listdir(tmp_path / "data") == ["part.parquet"]


def test_a_put_that_fails_leaves_the_old_file_and_no_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = locate(str(tmp_path / "part.parquet"))
    put_atomic(place, b"old")
    seen: list[str] = []

    def full_disk(source: str, target: str) -> None:
        seen.append(source)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        put_atomic(place, b"new")
    assert not seen[0].endswith(".parquet")
    assert os.listdir(tmp_path) == ["part.parquet"] and (tmp_path / "part.parquet").read_bytes() == b"old"


def test_any_fsspec_url_is_listed_read_and_written() -> None:
    root = locate("memory://bucket/run")
    put_atomic(root / "data" / "b.parquet", b"0123456")
    put_atomic(root / "data" / "a.parquet", b"1")
    put_atomic(root / "data" / ".hidden.parquet", b"1")
    put_atomic(root / "data" / "note.txt", b"1")
    assert list_files(root, ".parquet") == [("data/a.parquet", 1), ("data/b.parquet", 7)]
    assert list_files(root / "nothing") == []
    assert read_bytes(root / "data" / "b.parquet", start=-3) == b"456"
    assert exists(root / "data" / "note.txt") and not exists(root / "data" / "c")
    assert (root / "data").url == "memory:///bucket/run/data"
    assert isinstance(root.fs, fsspec.AbstractFileSystem)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (FileNotFoundError(2, "404"), False),
        (PermissionError(13, "403"), True),
        (OSError(16, "SlowDown"), True),
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (OSError("Corrupt snappy compressed data"), False),
        (ValueError("bad"), False),
    ],
)
def test_which_errors_are_the_infrastructures(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


def test_errors_of_object_store_clients_are_transient() -> None:
    botocore = pytest.importorskip("botocore.exceptions")
    assert is_transient(botocore.EndpointConnectionError(endpoint_url="http://x"))
    assert not is_transient(botocore.NoCredentialsError())


@pytest.mark.parametrize(("failures", "calls"), [(2, 3), (9, 3)])
def test_transient_errors_are_tried_again_and_surface_at_last(failures: int, calls: int) -> None:
    made: list[int] = []

    def flaky() -> str:
        made.append(1)
        if len(made) <= failures:
            raise ConnectionResetError("reset")
        return "done"

    if failures < 3:
        assert retry(flaky, attempts=3, first_delay_s=0.001) == "done"
    else:
        with pytest.raises(ConnectionResetError, match="reset"):
            retry(flaky, attempts=3, first_delay_s=0.001)
    assert len(made) == calls


def test_a_missing_object_is_asked_for_once() -> None:
    made: list[int] = []

    def missing() -> None:
        made.append(1)
        raise FileNotFoundError("404")

    with pytest.raises(FileNotFoundError):
        retry(missing, first_delay_s=0.001)
    assert len(made) == 1
