"""A real cluster of one node with its job server, for `ray job submit`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults.nodes import free_ports

START_S = 60.0


def get_json(url: str) -> dict[str, str]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return dict(json.load(answer))


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """End the head and everything it started, by process id: `ray stop` would end every Ray on the machine."""
    tree = psutil.Process(process.pid).children(recursive=True)
    for child in [*tree, process]:
        try:
            child.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait(timeout=20)
    psutil.wait_procs(tree, timeout=20)


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    # Short, since socket paths under it are limited to about 100 characters; it also holds the file in which Ray notes
    # "the" running cluster, so that nothing else on the machine finds this one.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        yield {**os.environ, "RAY_TMPDIR": folder, "PATH": path}


@pytest.fixture
def job_server(environment: dict[str, str]) -> Iterator[str]:
    """Start a cluster of one node with private ports and yield the address of its job server."""
    port, dashboard, agent, client = free_ports(4)
    log = Path(environment["RAY_TMPDIR"]) / "head.log"
    options = {
        "--port": port,
        "--dashboard-port": dashboard,
        "--dashboard-agent-listen-port": agent,
        "--ray-client-server-port": client,
        "--node-ip-address": "127.0.0.1",
        "--num-cpus": 4,
        "--object-store-memory": 300_000_000,
        "--temp-dir": environment["RAY_TMPDIR"],
    }
    command = ["ray", "start", "--head", "--block", *(f"{name}={value}" for name, value in options.items())]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                get_json(f"{address}/api/version")
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        yield address
    finally:
        kill_tree(process)


def submit(server: str, environment: dict[str, str], folder: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Submit a program of a folder as a job, and wait for its end."""
    command = ["ray", "job", "submit", "--address", server, "--submission-id", name, "--working-dir", str(folder), "--"]
    return subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=280)
