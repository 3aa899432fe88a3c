"""An object store that answers badly: errors, slow and lost answers, resets, cut bodies, no conditional PUT."""

from __future__ import annotations

import io
import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from pipelines.lock import has_conditional_put, hold_lock
from pipelines.storage import list_files, locate, put_atomic, read_bytes
from tests.conftest import FaultTable
from tests.faults.proxy import KINDS
from tests.faults.runs import SMALLEST, compare, rows_of, run, serving
from tests.pipeline.conftest import MakePicture

pytestmark = pytest.mark.timeout(300)


@contextmanager
def proxy(store: str, *words: str) -> Iterator[str]:
    """Serve a store through the proxy."""
    upstream = store.removeprefix("http://")
    with serving(sys.executable, "-m", "tests.faults.proxy", "--upstream", upstream, *words) as address:
        yield address


def done_by(address: str) -> dict[str, int]:
    """Ask a proxy what it did."""
    with urllib.request.urlopen(f"{address}/faults", timeout=20) as answer:
        return dict(json.load(answer))


@pytest.fixture
def store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the undisturbed store. Clients made in a test are forgotten after it."""
    yield os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.undo()
    S3FileSystem.clear_instance_cache()


def through(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process reach the store through the proxy, with one try of the client's own for each of ours."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    S3FileSystem.clear_instance_cache()


def spoilt(address: str) -> int:
    """Count the requests that a proxy did not pass on as they were."""
    return sum(count for name, count in done_by(address).items() if not name.endswith("passed"))


def test_an_object_is_written_and_read_over_faults(store: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 300
    with proxy(store, "--first", "2", "--methods", "GET,PUT", "--kinds", "500,503,reset,lost") as address:
        through(address, monkeypatch)
        place = locate(f"{bucket}/faults") / "a.bin"
        put_atomic(place, content)
        assert read_bytes(place) == content
        assert spoilt(address) == 4


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_fault_is_waited_out(
    kind: str, store: str, bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content = bytes(range(256)) * 300
    with proxy(store, "--first", "4", "--methods", "GET,PUT", "--kinds", kind, "--slow-s", "0.1") as address:
        through(address, monkeypatch)
        folder = locate(f"{bucket}/faults-{kind}")
        put_atomic(folder / "a.bin", content)
        assert read_bytes(folder / "a.bin") == content
        assert list_files(folder) == [("a.bin", 76_800)]
        assert spoilt(address) >= {"slow": 3, "cut": 9}.get(kind, 12)
    # Where the store asks to slow down or a body ends early, the client tries again by itself.
    assert kind in ("slow", "503", "cut") or any("attempt 1 of" in message for message in caplog.messages)


def test_a_store_without_conditional_put_is_found_out_through_the_proxy(
    store: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = locate(f"{bucket}/conditional") / "state" / "lock.json"
    assert has_conditional_put(place)
    with proxy(store, "--no-conditional") as address:
        through(address, monkeypatch)
        output = locate(f"{bucket}/conditional")
        assert not has_conditional_put(output / "state" / "lock.json")
        with hold_lock(output) as lock:
            lock.check()


def parquet(columns: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def write_input(url: str, make_picture: MakePicture) -> None:
    """Write three files: pictures inside, one that is truncated, pictures by name of which one is not there."""
    root = locate(url)
    words = {"source_prompt": ["a red cat on the lawn"] * 6, "target_prompt": ["a blue cat", "a red dog"] * 3}
    whole = parquet({"image": [make_picture(number) for number in range(6)], **words})
    put_atomic(root / "a.parquet", whole)
    put_atomic(root / "b.parquet", whole[:-29])
    put_atomic(root / "c.parquet", parquet({"image": [f"pictures/{number}.png" for number in range(6)], **words}))
    for number in range(5):
        put_atomic(root / "pictures" / f"{number}.png", make_picture(10 + number))


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_whole_runs_end_as_the_undisturbed_one(
    store: str, bucket: str, make_picture: MakePicture, fault_table: FaultTable
) -> None:
    write_input(f"{bucket}/faults/in", make_picture)
    words = [f"input={bucket}/faults/in", *SMALLEST, "batch_size=2"]
    clean = f"{bucket}/faults/clean"
    undisturbed = run(*words, f"output={clean}")
    assert undisturbed.code == 0, undisturbed.errors
    statuses = [(row["status"], row["error_type"]) for row in rows_of(clean)]
    good = ("ok", None)
    assert statuses == [*[good] * 6, ("rejected", "unreadable_file"), *[good] * 5, ("rejected", "missing_image")]
    disturbances = {
        "500 and 503, 30 % of all requests": ["--rate", "0.3", "--kinds", "500,503", "--seed", "1"],
        "resets and lost answers, 30 %": ["--rate", "0.3", "--kinds", "reset,lost", "--seed", "2"],
        "cut bodies, 30 % of reads": ["--rate", "0.3", "--kinds", "cut", "--methods", "GET", "--seed", "3"],
        "answers after 17 s, more than the client waits, 10 %": [
            "--rate",
            "0.1",
            "--kinds",
            "slow",
            "--slow-s",
            "17",
            "--seed",
            "5",
        ],
        "every write fails 7 times, then works": ["--first", "7", "--kinds", "500,503,reset", "--methods", "PUT"],
        "no conditional PUT, 20 % of everything": ["--rate", "0.2", "--no-conditional", "--seed", "4"],
    }
    for number, (fault, rules) in enumerate(disturbances.items()):
        output = f"{bucket}/faults/out-{number}"
        with proxy(store, *rules) as address:
            ended = run(*words, f"output={output}", timeout_s=600, AWS_ENDPOINT_URL=address)
            num_spoilt = spoilt(address)
        assert ended.code == 0, f"{fault}: {ended.errors}"
        assert num_spoilt >= 5, fault
        outcome = compare(output, clean)
        fault_table.add(outcome.line(f"store: {fault}", ended.seconds))
        assert outcome.is_whole, (fault, outcome)
