"""A Ray cluster of several nodes on this machine, each a `ray start` of its own, to be killed, drained and replaced."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.runs import environment

START_S = 180.0  # of a node, on a machine that is busy
START_TRIES = 3
STORE_BYTES = 100_000_000
ACTOR = "ray::MapWorker"  # how Ray calls the process of an editing actor


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


class NotStarted(RuntimeError):
    """A node has not come up."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """One node: the process of its `ray start`, and the address it has."""

    process: subprocess.Popen[bytes]
    ip: str

    def tree(self) -> list[psutil.Process]:
        """Its processes: raylet, agents, workers."""
        with suppress(psutil.NoSuchProcess):
            return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return []

    def actors(self) -> list[psutil.Process]:
        """The editing actors that run on it."""
        found = []
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith(ACTOR):
                    found.append(process)
        return found

    def kill(self) -> None:
        """End it as a lost machine ends: everything at once, without notice."""
        tree = self.tree()
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=60)
        psutil.wait_procs(tree, timeout=60)


@dataclass(kw_only=True)
class Nodes:
    """A head, and worker nodes that come and go. `folder` has every node's logs, and what it spills."""

    folder: str
    ip: str
    port: int
    dashboard: int
    env: dict[str, str]
    head: Node | None = None
    workers: list[Node] = field(default_factory=list)
    num_started: int = 0

    @property
    def address(self) -> str:
        return f"{self.ip}:{self.port}"

    @property
    def job_server(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    @property
    def logs(self) -> Path:
        return Path(self.folder)

    def start_head(self, num_cpus: int) -> None:
        (client,) = free_ports(1)
        words = ["--head", f"--port={self.port}", f"--dashboard-port={self.dashboard}", f"--ray-client-server-port={client}"]
        self.head = self._start(self.ip, *words, f"--num-cpus={num_cpus}", f"--temp-dir={self.folder}")

    def add(self, num_cpus: int = 2) -> Node:
        """Start a worker node and wait until it has joined."""
        self.num_started += 1
        node = self._start(f"127.0.0.{1 + self.num_started}", f"--address={self.address}", f"--num-cpus={num_cpus}")
        self.workers.append(node)
        return node

    def kill(self, node: Node) -> None:
        """Kill a worker node without grace."""
        self.workers.remove(node)
        node.kill()

    def drain(self, node: Node, deadline_s: float) -> None:
        """Tell Ray that a node is about to be taken away, as a spot machine is; killing it at the deadline is the caller's part."""
        from ray.core.generated import autoscaler_pb2

        accepted, reason = self._gcs().drain_node(
            self._nodes()[node.ip],
            autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "spot",
            int((time.time() + deadline_s) * 1000),
        )
        assert accepted, reason

    def close(self) -> None:
        for node in [*self.workers, *([self.head] if self.head else [])]:
            node.kill()

    def _start(self, ip: str, *words: str) -> Node:
        """Start a node, again where Ray gives up: on a busy machine its own 30 s may not do."""
        for _ in range(START_TRIES - 1):
            with suppress(NotStarted):
                return self._try_start(ip, *words)
        return self._try_start(ip, *words)

    def _try_start(self, ip: str, *words: str) -> Node:
        (agent,) = free_ports(1)
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", f"--node-ip-address={ip}", *words]
        command += [f"--dashboard-agent-listen-port={agent}", f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        log = self.logs / f"node-{ip}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(command, env=self.env, stdout=stream, stderr=subprocess.STDOUT)
        node = Node(process=process, ip=ip)
        deadline = time.monotonic() + START_S
        while True:
            with suppress(Exception):  # the head does not answer yet
                if ip in self._nodes():
                    return node
            if process.poll() is not None or time.monotonic() > deadline:
                node.kill()
                raise NotStarted(f"node {ip} did not start: {log.read_text()}")
            time.sleep(0.5)

    def _gcs(self) -> Any:
        from ray._raylet import GcsClient

        return GcsClient(address=self.address)

    def _nodes(self) -> dict[str, str]:
        """The ids of the living nodes by address."""
        nodes = self._gcs().get_all_node_info(timeout=5).values()
        return {node.node_manager_address: node.node_id.hex() for node in nodes if node.state == 0}


@contextmanager
def cluster(
    num_workers: int, *, num_cpus: int = 2, head_cpus: int = 0, place: str | None = None, **variables: str
) -> Iterator[Nodes]:
    """Start a head and worker nodes; `variables` are in the environment of every node, `place` is where their folder is made."""
    # Short, since socket paths under it are limited to about 100 characters; it also holds the file in which Ray notes "the"
    # running cluster, so that nothing else on the machine finds this one. Of the nodes here a driver takes the head for its own.
    with tempfile.TemporaryDirectory(prefix="ray-", dir=place, ignore_cleanup_errors=True) as folder:
        from ray._private.services import resolve_ip_for_localhost

        port, dashboard = free_ports(2)
        ip = resolve_ip_for_localhost("127.0.0.1")  # of the head; drivers look for their node under it
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        variables = {
            "RAY_TMPDIR": folder,
            "RAY_AUTH_MODE": "disabled",
            "RAY_memory_monitor_refresh_ms": "0",
            "PATH": path,
            **variables,
        }
        nodes = Nodes(folder=folder, ip=ip, port=port, dashboard=dashboard, env=environment(**variables))
        try:
            nodes.start_head(head_cpus)
            for _ in range(num_workers):
                nodes.add(num_cpus)
            yield nodes
        finally:
            nodes.close()
