"""Disks that are full: under the output, and under Ray's own folder, where it spills."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.conftest import FaultTable
from tests.faults.nodes import cluster
from tests.faults.runs import compare, num_parts, run, started, wait_for
from tests.pipeline.conftest import MakePicture, write_records
from tests.pipeline.output.test_resume import records

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root"),
]
ROWS = 12


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str, int], Path]]:
    """Return a maker of disks of so many MB."""
    mounted: list[Path] = []

    def make(name: str, megabytes: int) -> Path:
        folder = Path("/tmp") / f"disk-{os.getpid()}-{name}"  # short: Ray's sockets may lie there
        folder.mkdir()
        mounted.append(folder)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)
        with suppress(OSError):
            folder.rmdir()


def fill(folder: Path) -> Path:
    """Take all room that is left."""
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("wb") as stream:
        while True:
            stream.write(bytes(65536))
            stream.flush()
    return ballast


def clean_run(folder: Path, make_picture: MakePicture) -> list[str]:
    write_records(folder / "in" / "a.parquet", records(range(ROWS), make_picture))
    words = [f"input={folder / 'in'}", "model=random", "steps=10", "actors=1", "threads=1", "batch_size=1"]
    ended = run(*words, f"output={folder / 'clean'}", timeout_s=600)
    assert ended.code == 0, ended.errors
    return words


def test_an_output_without_room_ends_the_run_with_the_cause_and_it_goes_on_later(
    disk: Callable[[str, int], Path], tmp_path: Path, make_picture: MakePicture, fault_table: FaultTable
) -> None:
    words = clean_run(tmp_path, make_picture)
    folder, log = disk("output", 16), tmp_path / "log"
    output, began = str(folder / "out"), time.monotonic()
    with started([*words, f"output={output}"], log) as driver:
        wait_for(lambda: num_parts(output) >= 2, driver, log)
        ballast = fill(folder)
        assert driver.wait(timeout=300) == 1, log.read_text()
    assert "No space left on device" in log.read_text().splitlines()[-1]
    before = num_parts(output)
    assert 2 <= before < ROWS and not (folder / "out" / "_SUCCESS").exists()
    ballast.unlink()
    ended = run(*words, f"output={output}", timeout_s=600)
    assert ended.code == 0, ended.errors
    outcome = compare(output, str(tmp_path / "clean"))
    fault_table.add(outcome.line("disk of the output full, then freed and restarted", time.monotonic() - began))
    assert outcome.is_whole, outcome


# Holds more in Ray's object store than it has room for, so that every further object makes it spill.
HOARD = """
import sys, time
import numpy as np, ray
ray.init(address=sys.argv[1], log_to_driver=False)
held = [ray.put(np.random.default_rng(number).bytes(10_000_000)) for number in range(9)]
print("full", flush=True)
time.sleep(3600)
"""


def test_a_spill_without_room_loses_nothing(
    disk: Callable[[str, int], Path], tmp_path: Path, make_picture: MakePicture, fault_table: FaultTable
) -> None:
    """The object store is full of another job's objects, and there is no room to spill them to."""
    words = clean_run(tmp_path, make_picture)
    folder, log, output = disk("ray", 200), tmp_path / "log", str(tmp_path / "out")
    with cluster(0, head_cpus=4, place=str(folder)) as nodes, ExitStack() as stack:
        words.append(f"ray_address={nodes.address}")
        began = time.monotonic()
        with started([*words, f"output={output}"], log, RAY_TMPDIR=nodes.folder) as driver:
            wait_for(lambda: num_parts(output) >= 2, driver, log)
            ballast = fill(folder)
            hoard = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", HOARD, nodes.address], env=nodes.env, stdout=subprocess.PIPE)
            )
            stack.callback(hoard.kill)
            code = driver.wait(timeout=600)
        text = log.read_text()
        hoard.kill()
        ballast.unlink()
        spilled = spill_errors(text, nodes.logs)
        assert code in (0, 1), text
        assert code == 0 or "OutOfDiskError" in text or "No space left on device" in text, text
        ended = run(*words, f"output={output}", timeout_s=600, RAY_TMPDIR=nodes.folder)
        assert ended.code == 0, ended.errors
        seconds = time.monotonic() - began
    outcome = compare(output, str(tmp_path / "clean"))
    how = "the run went on" if code == 0 else "exit 1, then restarted"
    fault_table.add(outcome.line(f"disk full on spill ({spilled} refused): {how}", seconds))
    assert outcome.is_whole, outcome
    assert spilled


def spill_errors(text: str, logs: Path) -> int:
    """Count what raylets, or the driver for them, say of objects that could not be spilled: a full disk may not hold their own logs."""
    written = [path.read_text(errors="replace") for path in logs.rglob("raylet*.*")]  # not its socket
    return sum(
        "spilling objects" in line and "No space left" in line for each in (text, *written) for line in each.splitlines()
    )
