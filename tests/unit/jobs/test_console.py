"""What passes to the console of a job besides its own words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs._cli import cluster

HARMLESS = (
    "[2026-01-02 03:04:05,678 E 7 7] core_worker.cc:2465: Actor with class name: 'MapWorker(MapBatches(EditActor))' and ID: '9c' has "
    "constructor arguments in the object store and max_restarts > 0. If the arguments in the object store go out of scope or are lost, "
    "the actor restart will fail."
)
LAST_WORDS = "[2026-01-02 03:04:05,678 E 7 7] gcs_rpc_client.h:1: Failed to connect to GCS within 60 seconds. The program will terminate."
PROGRAM = f"""
import os, sys
from jobs._cli import console
console.own_stderr()
console._filter_stderr()
print("own words", file=sys.stderr)
os.write(2, {HARMLESS.encode()!r} + b"\\n" + {LAST_WORDS.encode()!r} + b"\\n")
os._exit(7)
"""


def test_what_the_core_says_before_it_ends_a_process_is_shown(repository: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=repository, capture_output=True, text=True, timeout=60)
    assert done.returncode == 7
    assert sorted(done.stderr.splitlines()) == sorted(["own words", LAST_WORDS])


def test_a_ray_that_asks_for_no_token_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(cluster, "quiet_ray", lambda: None)
    for mode, address, warns in (("disabled", None, True), ("token", None, False), ("disabled", "head:6379", False)):
        caplog.clear()
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        cluster.start(address)
        assert any("RAY_AUTH_MODE=disabled" in text for text in caplog.messages) == warns
