"""A run from object store to object store through `ray job submit`, on a cluster of several nodes, with faults on the way.

    python -m tests.faults.submitted --rows 1000 --faults actor,node,driver,stop,drain

Starts moto's server, a head and two worker nodes on this machine, edits once undisturbed in a plain process, and once as a submitted
job with the faults spread over the run; whatever ends the job is followed by the same command under another submission id. Prints the
fault table, and exits with 1 where a row is missing, doubled or different.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from s3fs import S3FileSystem

from pipelines.output.plan import load_plan
from pipelines.store.location import list_files, locate
from pipelines.store.lock import read_lock
from tests.faults.nodes import Nodes, cluster, free_ports
from tests.faults.pictures import write_input
from tests.faults.runs import Outcome, compare, num_parts, rows_begun, run, serving, table_text

FILE_ROWS = 50
NOTICE_S = 20.0
STEP_S = 900.0  # until the next unit is written, a node started, a job ended
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STORE = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@dataclass(kw_only=True)
class Submitted:
    """One run as jobs of a cluster; `words` are those of `jobs.edit`."""

    nodes: Nodes
    words: Sequence[str]
    output: str
    ids: list[str] = field(default_factory=list)

    def submit(self) -> None:
        """Submit the command under a new id."""
        self.ids.append(f"edit-{len(self.ids)}")
        job = ["python", "-m", "jobs.edit", *self.words]
        self._ray("submit", "--submission-id", self.ids[-1], "--no-wait", "--", *job)

    def stop(self) -> None:
        """End the job as `ray job stop` does: SIGTERM, and SIGKILL three seconds later."""
        self._ray("stop", self.ids[-1])

    def status(self) -> str:
        """What the job server says of the latest job."""
        with urllib.request.urlopen(f"{self.nodes.job_server}/api/jobs/{self.ids[-1]}", timeout=60) as answer:
            return str(json.load(answer)["status"])

    def drivers(self) -> list[psutil.Process]:
        """The processes of the driver on the head."""
        assert self.nodes.head is not None
        found = []
        for process in self.nodes.head.tree():
            with suppress(psutil.NoSuchProcess):
                if "jobs.edit" in process.cmdline() and "-m" in process.cmdline():
                    found.append(process)
        return found

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that the run does."""
        deadline = time.monotonic() + STEP_S
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {STEP_S:g} s for {what}; {self.log()}")
            time.sleep(0.5)

    def end(self) -> str:
        """Wait until the latest job has ended: as what."""
        self.wait(lambda: self.status() in ENDED, "the end of the job")
        return self.status()

    def log(self) -> str:
        return self._ray("logs", self.ids[-1])

    def _ray(self, *words: str) -> str:
        command = [str(Path(sys.executable).parent / "ray"), "job", words[0], "--address", self.nodes.job_server, *words[1:]]
        done = subprocess.run(command, env=self.nodes.env, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr


def disturb(job: Submitted, fault: str) -> str:
    """Bring about one fault: what came of it."""
    nodes = job.nodes
    if fault == "actor":
        job.wait(lambda: any(node.actors() for node in nodes.workers), "an editing actor")
        next(actor for node in nodes.workers for actor in node.actors()).kill()
        return "an editing actor killed"
    if fault == "node":
        nodes.kill(next((node for node in nodes.workers if node.actors()), nodes.workers[0]))
        nodes.add()
        return "a worker node killed, another added"
    if fault == "drain":
        lost = next((node for node in nodes.workers if node.actors()), nodes.workers[0])
        nodes.drain(lost, NOTICE_S)
        nodes.add()
        time.sleep(NOTICE_S)
        nodes.kill(lost)
        return f"a worker node drained with {NOTICE_S:g} s of notice, then killed"
    if fault == "driver":
        job.wait(job.drivers, "a driver")
        for process in job.drivers():
            process.kill()
        status = job.end()
        job.submit()
        return f"the driver killed ({status}), submitted again"
    job.stop()
    status = job.end()
    lock = read_lock(locate(job.output) / "state" / "lock.json") or {}
    job.submit()
    return f"`ray job stop` ({status}; lock released: {lock.get('released')}), submitted again"


def edit(rows: int, faults: Sequence[str], store: str) -> Outcome:
    """Run undisturbed and disturbed, and print the fault table."""
    variables = {**{name: os.environ.get(name, value) for name, value in STORE.items()}, "AWS_ENDPOINT_URL": store}
    os.environ.update(variables)
    S3FileSystem.clear_instance_cache()
    bucket = f"s3://thousand-{os.getpid()}"
    locate(bucket).fs.mkdir(bucket.removeprefix("s3://"))
    write_input(f"{bucket}/in", rows, FILE_ROWS)
    words = [f"input={bucket}/in", "model=random", "steps=1", "threads=1", "batch_size=4"]
    ended = run(*words, f"output={bucket}/clean", "actors=2", timeout_s=3600)
    if ended.code:
        raise RuntimeError(ended.errors)
    say(f"undisturbed, a plain process: {ended.text.splitlines()[0]}")
    output = f"{bucket}/out"
    with cluster(2, **variables) as nodes:
        job = Submitted(nodes=nodes, words=[*words, f"output={output}", "actors=2", "log_format=json"], output=output)
        began = time.monotonic()
        job.submit()
        job.wait(lambda: num_parts(output) >= 1, "the first unit")
        stored = load_plan(locate(output))
        assert stored is not None
        units = len(stored.plan.units)
        told = []
        for number, fault in enumerate(faults):
            due = max(1, units * (number + 1) // (len(faults) + 1))
            job.wait(lambda due=due: num_parts(output) >= due, f"unit {due}")  # type: ignore[misc]
            told.append(disturb(job, fault))
            say(f"{time.monotonic() - began:.0f} s, {num_parts(output)} of {units} units: {told[-1]}")
        status = job.end()
        seconds = time.monotonic() - began
        if status != "SUCCEEDED":
            raise RuntimeError(job.log())
        outcome = compare(output, f"{bucket}/clean", redone=rows_begun(nodes.logs) - rows)
    say(table_text([outcome.line("submitted, S3 to S3: " + "; ".join(told), seconds)]))
    say(f"{len(job.ids)} submissions, {units} units, {len(list_files(locate(output) / 'data'))} objects")
    return outcome


def say(text: str) -> None:
    print(text, flush=True)


def main(words: Sequence[str] | None = None) -> int:
    """Run, report, and say by the exit code whether everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--faults", default="actor,node,driver,stop,drain", help="in this order, spread over the run")
    parser.add_argument("--store", help="http://HOST:PORT of another S3 server; default: moto's, started here")
    given = parser.parse_args(words)
    faults = [fault for fault in given.faults.split(",") if fault]
    if given.store:
        return 0 if edit(given.rows, faults, given.store).is_whole else 1
    (port,) = free_ports(1)
    with serving(sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)) as store:
        return 0 if edit(given.rows, faults, store).is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
