"""`jobs.synthesize` as processes: killed and started again, and submitted to a running cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.pipeline.conftest import MakePicture, write_records
from tests.pipeline.job_server import environment, get_json, job_server, submit

__all__ = ["environment", "job_server"]  # fixtures

CAPTIONS = [f"a {colour} {shape} on a white background" for colour in ("red", "blue", "green") for shape in ("star", "heart")]
OPTIONS = ["model=random", "steps=1", "source.steps=1", "words=scenes", "candidates=2", "actors=1", "threads=1", "batch_size=2"]
OPTIONS += [
    "filters.min_background_psnr=null",
    "filters.require_mask=false",
    "filters.min_change=null",
    "edits=[change_object]",
]
WAIT_S = 400.0


def parts(folder: Path) -> int:
    return len(list(folder.glob("part-*.parquet")))


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_a_driver_killed_in_every_stage_ends_with_the_same_data_set(repository: Path, tmp_path: Path) -> None:
    for name, captions in (("a", CAPTIONS[:3]), ("b", CAPTIONS[3:])):
        write_records(tmp_path / "in" / f"{name}.parquet", [{"source_prompt": caption} for caption in captions])

    def start(output: str) -> subprocess.Popen[bytes]:
        words = [f"input={tmp_path / 'in'}", f"output={tmp_path / output}", *OPTIONS]
        command = [sys.executable, "-m", "jobs.synthesize", *words]
        with (tmp_path / "log").open("wb") as log:
            return subprocess.Popen(command, cwd=repository, stdout=log, stderr=subprocess.STDOUT)

    def kill_when(condition: Callable[[], bool]) -> None:
        process = start("out")
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()

    out = tmp_path / "out"
    kill_when(lambda: parts(out / "pairs") >= 1)
    kill_when(lambda: parts(out / "candidates" / "data") >= 1)
    kill_when(lambda: parts(out / "scores") >= 1)
    kill_when(lambda: (out / "README.md").exists())
    assert not (out / "_SUCCESS").exists()
    assert start("out").wait(WAIT_S) == 0 and start("whole").wait(WAIT_S) == 0
    whole = tmp_path / "whole"
    for folder in ("pairs", "data"):
        names = sorted(path.name for path in (whole / folder).iterdir() if path.suffix == ".parquet")
        assert names == sorted(path.name for path in (out / folder).iterdir() if path.suffix == ".parquet") and names
        for name in names:
            assert (out / folder / name).read_bytes() == (whole / folder / name).read_bytes()


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_submitted_synthesis_succeeds(
    repository: Path, environment: dict[str, str], job_server: str, tmp_path: Path, make_picture: MakePicture
) -> None:
    rows = [
        {"image": make_picture(n), "source_prompt": "a cat", "target_prompt": f"a {word}"}
        for n, word in enumerate(("dog", "cow"))
    ]
    write_records(tmp_path / "in" / "x.parquet", rows)
    job = ["python", "-m", "jobs.synthesize", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", *OPTIONS]
    run = submit(job_server, environment, repository, "make", *job)
    assert run.returncode == 0, run.stdout + run.stderr
    assert get_json(f"{job_server}/api/jobs/make")["status"] == "SUCCEEDED"
    made = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert sorted(row["edit_prompt"] for row in made) == ["make it a cow", "make it a dog"]
    assert (tmp_path / "out" / "_SUCCESS").is_file()
