from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from pipelines.store import lock as lock_module
from pipelines.store.location import Location, locate, put_atomic
from pipelines.store.lock import LockLost, describe_holder, has_conditional_put, hold_lock, is_free, read_lock
from vimaedit.errors import ConfigError


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LOCK_RENEW_S", 0.05), ("LOCK_STALE_S", 0.6), ("LOCK_POLL_S", 0.05), ("LOCK_SETTLE_S", 0.05)):
        monkeypatch.setattr(lock_module, name, seconds)


def place_of(folder: Path) -> Location:
    return locate(str(folder)) / "state" / "lock.json"


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def write_lock(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write the lock of a driver on another host."""
    record = {"token": "other", "host": "elsewhere", "pid": 7, "process_start": "1", "process_space": "", "started_at": 60.0}
    record |= {"renewals": 3, "released": False, "renewed_at": 61.0, **changes}
    put_atomic(place_of(folder), json.dumps(record).encode())
    return record


def test_a_lock_is_renewed_with_its_facts_and_released(tmp_path: Path) -> None:
    with hold_lock(locate(str(tmp_path))) as lock:
        first = read_lock(lock.place)
        assert first is not None and first["pid"] == os.getpid() and not first["released"] and not is_free(first)
        lock.facts = {"rows": 17}
        wait_for(lambda: (read_lock(lock.place) or {}).get("rows") == 17)
        found = read_lock(lock.place)
        assert found is not None and found["renewals"] > first["renewals"] and found["token"] == first["token"]
        lock.check()
    last = read_lock(lock.place)
    assert last is not None and last["released"] and is_free(last) and last["rows"] == 17
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["lock.json"]


INTERRUPTED = """
import os, signal, sys
from jobs._cli.signals import exit_on_signals
from pipelines.store.lock import hold_lock, release_held
from pipelines.store.location import locate
exit_on_signals(release_held)
with hold_lock(locate(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_releases_the_lock_for_drivers_of_any_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (4, "\ninterrupted by SIGTERM\n")
    found = read_lock(place_of(tmp_path))
    assert found is not None and found["released"] and found["interrupted"] == "SIGTERM"
    write_lock(tmp_path, **{**found, "host": "elsewhere"})
    monkeypatch.setattr(lock_module, "LOCK_STALE_S", 1000.0)
    with hold_lock(locate(str(tmp_path))) as lock:
        assert "interrupted" not in lock.record


def test_what_was_released_is_not_renewed_and_not_taken_from_another(tmp_path: Path) -> None:
    with hold_lock(locate(str(tmp_path))) as lock:
        lock_module.release_held("SIGINT")
        released = read_lock(lock.place)
        assert released is not None and released["interrupted"] == "SIGINT"
        lock.renew()
        assert read_lock(lock.place) == released
        write_lock(tmp_path)
        lock_module.release_held("SIGINT")
        assert (read_lock(lock.place) or {})["token"] == "other"


def test_a_second_driver_is_told_of_the_first(tmp_path: Path) -> None:
    output = locate(str(tmp_path))
    with hold_lock(output) as lock:
        with pytest.raises(ConfigError) as refused, hold_lock(output):
            pass
        text = str(refused.value)
        assert text.startswith(f"output: got {tmp_path}/state/lock.json, which is held by process {os.getpid()} on ")
        assert text.endswith("; allowed: one run at a time, so wait for its end or stop it")
        lock.check()


def test_a_released_lock_and_that_of_a_dead_process_here_are_taken_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "LOCK_STALE_S", 1000.0)
    write_lock(tmp_path, released=True)
    with hold_lock(locate(str(tmp_path))):
        pass
    code = "import json; from pipelines.store.lock import _this_process; print(json.dumps(_this_process()))"
    dead = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    write_lock(tmp_path, **dead)
    with hold_lock(locate(str(tmp_path))) as lock:
        assert lock.record["token"] != "other"


def test_a_process_of_another_machine_or_a_reused_number_is_no_proof(tmp_path: Path) -> None:
    own = lock_module._this_process()
    assert not is_free(write_lock(tmp_path, **own))
    assert is_free(write_lock(tmp_path, **own | {"process_start": "another"}))  # the number is a younger process's by now
    assert not is_free(write_lock(tmp_path, **own | {"process_start": "another", "process_space": "another"}))
    assert not is_free(write_lock(tmp_path, **own | {"process_start": "another", "host": "elsewhere"}))


def test_a_lock_that_nobody_renews_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = write_lock(tmp_path)
    started = time.monotonic()
    with hold_lock(locate(str(tmp_path))) as lock:
        assert time.monotonic() - started >= 0.6
        assert lock.record["token"] != record["token"]
    assert (
        "lock: taken over from process 7 on elsewhere, which began 1970-01-01 00:01:00 UTC; unchanged for 0.6 s"
        in caplog.messages
    )


def test_one_who_was_taken_over_may_commit_nothing_and_leaves_the_lock_alone(tmp_path: Path) -> None:
    lost = threading.Event()
    with hold_lock(locate(str(tmp_path))) as lock:
        lock.on_lost = lost.set
        record = write_lock(tmp_path)
        assert lost.wait(20)
        with pytest.raises(LockLost) as error:
            lock.check()
        assert str(error.value) == (
            f"{tmp_path}/state/lock.json: held by {describe_holder(record)} now; this run ends here and commits nothing"
        )
    assert read_lock(lock.place) == record


def test_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "state" / "lock.json").mkdir(parents=True)
    expected = rf"^output: got {tmp_path}/state/lock.json, which is damaged \(a folder stands there\); .*\(remove the folder\)$"
    with pytest.raises(ConfigError, match=expected), hold_lock(locate(str(tmp_path))):
        pass


def test_a_removed_lock_is_lost(tmp_path: Path) -> None:
    with hold_lock(locate(str(tmp_path))) as lock:
        (tmp_path / "state" / "lock.json").unlink()
        with pytest.raises(LockLost, match="held by nobody; it was removed now; this run ends here"):
            lock.check()


def test_of_many_that_begin_at_once_one_gets_the_lock(tmp_path: Path) -> None:
    got: list[str] = []
    done, end = threading.Barrier(5), threading.Event()

    def take() -> None:
        try:
            with hold_lock(locate(str(tmp_path))) as lock:
                got.append(lock.record["token"])
                done.wait(20)
                end.wait(20)
        except ConfigError:
            got.append("refused")
            done.wait(20)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    done.wait(20)
    end.set()
    for thread in threads:
        thread.join()
    assert got.count("refused") == 3


class Ignorant(http.server.BaseHTTPRequestHandler):
    """A store that speaks enough of S3 for single objects, and accepts `If-None-Match` and ignores it."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]

    def answer(self, status: int, body: bytes = b"", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Thu, 01 Jan 1970 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200)

    def do_GET(self) -> None:
        found = self.objects.get(self.path)
        if found is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self.answer(200, found)

    def do_HEAD(self) -> None:
        found = self.objects.get(self.path)
        self.answer(404 if found is None else 200, length=len(found or b""))

    def do_DELETE(self) -> None:
        self.objects.pop(self.path, None)
        self.answer(204)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def no_instances() -> Iterator[None]:
    """Let no file system that knows another address stay with fsspec, before and after."""
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


def point_to(monkeypatch: pytest.MonkeyPatch, host: str, port: int) -> None:
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**settings, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def ignorant(no_instances: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    objects: dict[str, bytes] = {}
    handler = type("Handler", (Ignorant,), {"objects": objects})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    point_to(monkeypatch, "127.0.0.1", server.server_address[1])
    yield objects
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def store(no_instances: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    point_to(monkeypatch, *server.get_host_and_port())
    locate("s3://locked").fs.mkdir("locked")
    yield "s3://locked"
    server.stop()


def test_a_store_that_ignores_the_condition_is_found_out_and_the_lock_is_advisory(
    ignorant: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    output = locate("s3://bucket/ignored")
    place = output / "state" / "lock.json"
    assert not has_conditional_put(place)
    caplog.set_level("INFO")
    with hold_lock(output) as lock:
        lock.check()
        with pytest.raises(ConfigError, match="which is held by process"), hold_lock(output):
            pass
    assert f"lock: {place.url} takes no conditional PUT, so the lock is advisory" in caplog.messages
    assert list(ignorant) == ["/bucket/ignored/state/lock.json"]


def test_a_store_that_knows_the_condition_gives_the_lock_to_one(store: str) -> None:
    output = locate(f"{store}/known")
    place = output / "state" / "lock.json"
    assert has_conditional_put(place)
    with hold_lock(output) as lock:
        assert not lock_module._create(place, {**lock.record, "token": "late"})
        lock.check()
    assert [path.rpartition("/")[2] for path in place.fs.find("locked/known/state")] == ["lock.json"]


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {name: value}
            for name in ("started_at", "renewed_at", "editing_since")
            for value in ("x", 1e300, float("nan"), None, -1, [])
        ),
        *({name: value} for name in ("rows_edited", "limit") for value in ("x", -1, 0.5, {})),
    ],
)
def test_a_lock_that_another_program_wrote_is_as_one_being_written(changes: dict[str, Any], tmp_path: Path) -> None:
    write_lock(tmp_path, **changes)
    assert read_lock(place_of(tmp_path)) == {}


def test_a_lock_that_reads_as_one_being_written_is_watched_and_taken_over(tmp_path: Path) -> None:
    record = write_lock(tmp_path, started_at="x")
    started = time.monotonic()
    with hold_lock(locate(str(tmp_path))) as lock:
        assert time.monotonic() - started >= 0.6 and lock.record["token"] != record["token"]


def test_a_lock_nested_without_end_is_none(tmp_path: Path) -> None:
    put_atomic(place_of(tmp_path), b"[" * 100_000)
    assert read_lock(place_of(tmp_path)) == {}
