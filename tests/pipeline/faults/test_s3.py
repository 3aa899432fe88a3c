"""An object store that answers badly: errors, slow and lost answers, resets, cut bodies, no conditional PUT."""

from __future__ import annotations

import io
import json
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from pipelines.store.location import list_files, locate, put_atomic, read_bytes
from pipelines.store.lock import has_conditional_put, hold_lock
from tests.conftest import FaultTable
from tests.faults.nodes import Nodes, cluster
from tests.faults.proxy import KINDS
from tests.faults.runs import SMALLEST, Ended, compare, num_parts, rows_begun, rows_of, run, serving, started, wait_for
from tests.pipeline.conftest import MakePicture

pytestmark = pytest.mark.timeout(300)

AWAY_S = 60.0  # more than five tries take


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


@dataclass(frozen=True, kw_only=True)
class Behind:
    """A cluster that reaches the store through a proxy, and an undisturbed run of `words` on it in `clean`."""

    proxy: str
    nodes: Nodes
    folder: str
    words: tuple[str, ...]

    @property
    def clean(self) -> str:
        return f"{self.folder}/clean"

    def rule(self, **rules: Any) -> None:
        """Let the proxy spoil what passes by these rules from now on."""
        asked = urllib.request.Request(f"{self.proxy}/faults", data=json.dumps(rules).encode())
        urllib.request.urlopen(asked, timeout=20).close()

    def run(self, output: str) -> Ended:
        variables = {"AWS_ENDPOINT_URL": self.proxy, "RAY_TMPDIR": self.nodes.folder}
        return run(*self.words, f"output={output}", timeout_s=900, **variables)


@pytest.fixture(scope="module")
def behind(bucket: str, make_picture: MakePicture) -> Iterator[Behind]:
    store = os.environ["AWS_ENDPOINT_URL"]
    with proxy(store) as address, cluster(0, head_cpus=4, AWS_ENDPOINT_URL=address) as nodes:
        folder = f"{bucket}/behind"
        write_input(f"{folder}/in", make_picture)
        words = (f"input={folder}/in", *SMALLEST, "batch_size=2", f"ray_address={nodes.address}", "log_format=json")
        found = Behind(proxy=address, nodes=nodes, folder=folder, words=words)
        undisturbed = found.run(found.clean)
        assert undisturbed.code == 0, undisturbed.errors
        yield found


SHARE = {"rate": 0.3}
DISTURBANCES: dict[str, dict[str, Any]] = {
    "500 and 503, 30 % of all requests": {**SHARE, "kinds": ["500", "503"], "seed": 1},
    "resets and lost answers, 30 %": {**SHARE, "kinds": ["reset", "lost"], "seed": 2},
    "cut bodies, 30 % of reads": {**SHARE, "kinds": ["cut"], "methods": ["GET"], "seed": 3},
    "answers after 17 s, more than the client waits, 5 %": {"rate": 0.05, "kinds": ["slow"], "slow_s": 17.0, "seed": 5},
    "every write fails 7 times, then works": {"first": 7, "kinds": ["500", "503", "reset"], "methods": ["PUT"]},
    "no conditional PUT, 20 % of everything": {"rate": 0.2, "conditional": False, "seed": 4},
}


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fault", DISTURBANCES)
def test_a_whole_run_ends_as_the_undisturbed_one(fault: str, behind: Behind, store: str, fault_table: FaultTable) -> None:
    good = ("ok", None)
    statuses = [(row["status"], row["error_type"]) for row in rows_of(behind.clean)]
    assert statuses == [*[good] * 6, ("rejected", "unreadable_file"), *[good] * 5, ("rejected", "missing_image")]
    output, before = f"{behind.folder}/out-{list(DISTURBANCES).index(fault)}", rows_begun(behind.nodes.logs)
    behind.rule(**DISTURBANCES[fault])
    num_before = spoilt(behind.proxy)
    ended = behind.run(output)
    num_spoilt = spoilt(behind.proxy) - num_before
    behind.rule()
    assert ended.code == 0, ended.errors
    assert num_spoilt >= 3
    outcome = compare(output, behind.clean, redone=rows_begun(behind.nodes.logs) - before - statuses.count(good))
    fault_table.add(outcome.line(f"store: {fault} ({num_spoilt} spoilt)", ended.seconds))
    assert outcome.is_whole, outcome


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_a_store_that_is_away_for_a_while_fails_no_row(
    behind: Behind, store: str, bucket: str, tmp_path: Path, make_picture: MakePicture, fault_table: FaultTable
) -> None:
    root, words = locate(f"{bucket}/away/in"), {"source_prompt": ["a red cat"] * 24, "target_prompt": ["a blue cat"] * 24}
    put_atomic(root / "a.parquet", parquet({"image": [f"pictures/{number}.png" for number in range(24)], **words}))
    for number in range(24):
        put_atomic(root / "pictures" / f"{number}.png", make_picture(number))
    options = [f"input={bucket}/away/in", "model=random", "steps=10", "actors=1", "threads=1", "batch_size=1"]
    options.append(f"ray_address={behind.nodes.address}")
    output, clean, log = f"{bucket}/away/out", f"{bucket}/away/clean", tmp_path / "log"
    variables = {"AWS_ENDPOINT_URL": behind.proxy, "RAY_TMPDIR": behind.nodes.folder}
    undisturbed = run(*options, f"output={clean}", timeout_s=600, **variables)
    assert undisturbed.code == 0, undisturbed.errors
    began, num_before = time.monotonic(), spoilt(behind.proxy)
    with started([*options, f"output={output}"], log, **variables) as driver:
        wait_for(lambda: num_parts(output) >= 2, driver, log)
        behind.rule(down_until=time.time() + AWAY_S)
        left = 24 - num_parts(output)
        assert driver.wait(timeout=900) == 0, log.read_text()
    assert spoilt(behind.proxy) - num_before >= 5
    assert left >= 5
    outcome = compare(output, clean)
    fault_table.add(outcome.line(f"store: away for {AWAY_S:.0f} s in the middle", time.monotonic() - began))
    assert outcome.is_whole, outcome
