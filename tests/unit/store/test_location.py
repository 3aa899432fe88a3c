from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipelines.store import location as storage
from pipelines.store.location import (
    Damaged,
    Location,
    check_writable,
    exists,
    is_transient,
    list_files,
    locate,
    open_reader,
    put_atomic,
    put_json,
    read_bytes,
    read_json,
    retry,
)
from pipelines.store.masking import mask_urls
from pipelines.store.patience import ATTEMPTS, MAX_DELAY_S, PATIENT_ATTEMPTS
from vimaedit.errors import ConfigError


class Remote(MemoryFileSystem):
    """A store that is not this process's own, as far as anybody can tell."""

    protocol = "remote"


REMOTE = Location(Remote(), "/somewhere/out")


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


def test_a_store_without_credentials_is_told_without_a_traceback() -> None:
    botocore = pytest.importorskip("botocore.exceptions")

    def refused() -> None:
        raise botocore.NoCredentialsError

    with pytest.raises(ConfigError, match="Unable to locate credentials; allowed: credentials and region in the environment"):
        retry(refused, first_delay_s=0)


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


def test_a_refusal_is_not_waited_for_as_long_as_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waits.append)

    def refused() -> None:
        raise PermissionError(13, "403")

    def out() -> None:
        raise ConnectionResetError("reset")

    with pytest.raises(PermissionError):
        retry(refused, attempts=PATIENT_ATTEMPTS)
    assert len(waits) == ATTEMPTS - 1
    waits.clear()
    with pytest.raises(ConnectionResetError):
        retry(out, attempts=PATIENT_ATTEMPTS)
    assert len(waits) == PATIENT_ATTEMPTS - 1 and 120 < sum(waits) < 420 and max(waits) <= MAX_DELAY_S


@pytest.mark.parametrize("url", ["foo://bucket/x", "nothing+odd://x", "s3://[", "github://x", "dir://x"])
def test_places_that_cannot_be_made_out_are_a_configuration_error(url: str) -> None:
    with pytest.raises(
        ConfigError, match=f"got '{re.escape(url)}': .*; allowed: a local path, or a URL of a scheme known here"
    ):
        locate(url)


def test_a_writable_place_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(locate(str(tmp_path / "not" / "yet")))
    check_writable(REMOTE)
    assert os.listdir(tmp_path) == [] and not exists(REMOTE)


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nope")):
        with pytest.raises(ConfigError, match=f"output: got '{path}', where nothing can be written: .*; allowed: a folder"):
            check_writable(locate(str(path)))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("s3://user:pass@bucket/key", "s3://***@bucket/key"),
        ("https://h/a?x=1&X-Amz-Signature=ab%2Fcd&y=2", "https://h/a?x=1&X-Amz-Signature=***&y=2"),
        ("'https://h/a?token=abc' and s3://b/token=1", "'https://h/a?token=***' and s3://b/token=1"),
        ("s3://user:p@ss@bucket/key", "s3://***@bucket/key"),
        ("https://h/a?next=b@c", "https://h/a?next=b@c"),
        ("https://h/a#pwd=abc", "https://h/a#pwd=***"),
        ("Max retries exceeded with url: /a?sig=abc", "Max retries exceeded with url: /a?sig=***"),
        ("/local/user:pass@file", "/local/user:pass@file"),
    ],
)
def test_credentials_in_urls_are_masked(text: str, masked: str) -> None:
    assert mask_urls(text) == masked


def test_masking_takes_no_longer_than_the_text() -> None:
    started = time.monotonic()
    mask_urls("?" + "key" * 200_000)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no such bucket"), NotImplementedError("read only")])
def test_a_remote_place_that_refuses_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    place = REMOTE
    monkeypatch.setattr(place.fs, "pipe_file", refusing(error))
    with pytest.raises(ConfigError, match="output: got 'remote:///somewhere/out', where nothing can be written: .*; allowed:"):
        check_writable(place)


def test_an_outage_is_no_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    place = REMOTE
    monkeypatch.setattr(place.fs, "pipe_file", refusing(ConnectionResetError("reset")))
    with pytest.raises(ConnectionResetError, match="reset"):
        check_writable(place)


def refusing(error: Exception) -> Callable[..., None]:
    def call(*_: object) -> None:
        raise error

    return call


def test_a_missing_object_is_asked_for_once() -> None:
    made: list[int] = []

    def missing() -> None:
        made.append(1)
        raise FileNotFoundError("404")

    with pytest.raises(FileNotFoundError):
        retry(missing, first_delay_s=0.001)
    assert len(made) == 1


def test_a_json_object_comes_back_without_credentials(tmp_path: Path) -> None:
    place = locate(str(tmp_path / "run.json"))
    assert read_json(place) is None
    put_json(place, {"model": "https://ann:hush@host/m", "rows": 7})
    assert read_json(place) == {"model": "https://***@host/m", "rows": 7}
    put_json(place, {"nan": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        put_json(place, {"nan": float("nan")}, allow_nan=False)


@pytest.mark.parametrize("content", [b"", b'{"rows": 7', b"[1]", b"\xff"])
def test_a_damaged_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(Damaged, match=r"^got .*/run.json, which is damaged \(.*\); allowed: a JSON object as it was written$"):
        read_json(locate(str(tmp_path / "run.json")))


def test_a_file_url_and_a_path_with_colons_are_local_places(tmp_path: Path) -> None:
    for name in ("a b", "ü%20", "x::y", "zip::z"):
        (tmp_path / name).mkdir()
        assert locate((tmp_path / name).as_uri()) == locate(str(tmp_path / name)) == locate(f"file://{tmp_path}/{name}")
        assert locate(str(tmp_path / name)).path == str(tmp_path / name)
    assert locate((tmp_path / "new one").as_uri()).path == str(tmp_path / "new one")
    assert locate("s3://bucket/a::b/c").path == "bucket/a::b/c"


@pytest.mark.parametrize(
    ("content", "reason"),
    [('{"rows": 7}', "counts is missing"), ('{"rows": "7", "counts": {}}', "rows is '7'"), ("[" * 100_000, "recursion")],
)
def test_an_object_that_lacks_what_is_read_of_it_is_named(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(Damaged, match=rf"run.json, which is damaged \(.*{reason}.*\); .* \(write it again\)$"):
        read_json(locate(str(tmp_path / "run.json")), {"rows": int, "counts": dict}, "write it again")


def test_a_folder_in_the_place_of_an_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(Damaged, match=r"run.json, which is damaged \(a folder stands there\)"):
        read_json(locate(str(tmp_path / "run.json")))


def test_memory_of_one_process_is_no_output() -> None:
    with pytest.raises(ConfigError, match=r"^output: got memory:///out, which is the memory of this process alone"):
        check_writable(locate("memory://out"))


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan").write_text("mine")
    check_writable(locate(str(tmp_path)), "data")
    with pytest.raises(ConfigError, match=rf"where nothing can be written: NotADirectoryError: .*'{tmp_path}/plan'"):
        check_writable(locate(str(tmp_path)), "data", "plan")


def test_pipes_and_devices_hold_no_reader_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        for read in (read_bytes, open_reader):
            with pytest.raises(OSError, match="is a pipe, socket or device, not a regular file"):
                read(locate(str(tmp_path / name)))
