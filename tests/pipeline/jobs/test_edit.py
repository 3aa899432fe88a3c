"""`jobs.edit` as a plain process: what it says at the end, and how it leaves at a signal."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from jobs.scenes import main as write_scenes

GONE_S = 60.0
START_S = 90.0


def run_job(repository: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.edit", *words],
        cwd=repository,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_cluster_of_the_environment_that_does_not_answer_is_exit_2(repository: Path, tmp_path: Path) -> None:
    assert write_scenes([f"output={tmp_path / 'records'}", "count=5"]) == 0
    words = [f"input={tmp_path / 'records'}", f"output={tmp_path / 'edited'}"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        done = run_job(repository, *words, RAY_ADDRESS=address)
    assert done.returncode == 2, done.stderr
    assert f"jobs.edit: ray_address: got '{address}', where nobody answers" in done.stderr
    assert not (tmp_path / "edited").exists()


def start(repository: Path, log: Path, *words: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen([sys.executable, "-m", "jobs.edit", *words], cwd=repository, stdout=stream, stderr=stream)


def wait_for(condition: Callable[[], object], job: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        assert job.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_signal_to_a_dry_run_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    assert write_scenes([f"output={tmp_path / 'records'}", "count=5"]) == 0
    words = [f"input={tmp_path / 'records'}", f"output={tmp_path / 'edited'}", "steps=999", "dry_run=true"]
    log = tmp_path / "log"
    job = start(repository, log, *words)
    # A worker that measures: Ray names the process after its task.
    wait_for(lambda: "ray::_measure" in living_names(psutil.Process(job.pid).children(recursive=True)), job, log)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 4
    assert not (tmp_path / "edited").exists()
    assert log.read_text().endswith("\ninterrupted by SIGTERM\n")


@pytest.mark.timeout(200)
def test_a_signal_leaves_with_4_a_note_and_no_worker(repository: Path, tmp_path: Path) -> None:
    assert write_scenes([f"output={tmp_path / 'records'}", "count=12"]) == 0
    output = tmp_path / "edited"
    words = [f"input={tmp_path / 'records'}", f"output={output}", "model=random", "steps=500", "actors=1"]
    log = tmp_path / "log"
    job = start(repository, log, *words)
    wait_for((output / "plan" / "plan.json").exists, job, log)
    started = psutil.Process(job.pid).children(recursive=True)
    assert started
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 4
    lock = json.loads((output / "state" / "lock.json").read_text())
    assert (lock["released"], lock["interrupted"]) == (True, "SIGTERM")
    assert not (output / "_SUCCESS").exists()
    assert log.read_text().endswith("\ninterrupted by SIGTERM\n")
    # Workers, node and head are gone within seconds; Ray's two agents may stay up to a minute after their node.
    agents = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
    deadline = time.monotonic() + GONE_S
    while left := living_names(started) - agents:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def living_names(processes: list[psutil.Process]) -> set[str]:
    names = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                names.add(process.name())
    return names
