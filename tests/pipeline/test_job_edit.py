"""`jobs.edit` as a plain process: what it says at the end, and how it leaves at a signal."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs.edit import dry_run_text, summary_text
from jobs.scenes import main as write_scenes
from pipelines.edit import DryRunReport, RunSummary

GONE_S = 60.0
START_S = 90.0


def test_the_summary_names_every_status_the_rate_and_the_places() -> None:
    summary = RunSummary(
        exit_code=5,
        counts={"ok": 11, "rejected": 3, "failed": 5},
        rows=19,
        seconds=7.6,
        units=2,
        data="s3://bucket/edited/data",
        run_json=None,
        sheet="s3://bucket/edited/sheet.png",
        stop_reason="101 of the last 200 rows failed (stop_failed_fraction=0.5)",
        warnings=(),
    )
    assert summary_text(summary).splitlines() == [
        "19 rows in 7.6 s (2.50 rows/s): 11 ok, 3 rejected, 5 failed, 0 quarantined",
        "data:   s3://bucket/edited/data",
        "sheet:  s3://bucket/edited/sheet.png",
        "stopped early: 101 of the last 200 rows failed (stop_failed_fraction=0.5)",
    ]


def test_the_dry_run_says_what_a_run_would_be() -> None:
    report = DryRunReport(
        files=3,
        unreadable_files=1,
        requests=7_331,
        units=17,
        requests_per_unit=448,
        batch_size=8,
        actors=2,
        device="cuda",
        dtype="float16",
        model_digest="m1",
        config_digest="c1",
        rows_per_hour=3_665.5,
        output_gb=5.1317,
        warnings=(),
    )
    assert dry_run_text(report).splitlines() == [
        "input:  3 files, 1 unreadable, 7331 edits",
        "plan:   17 units of up to 448 edits, batches of 8",
        "place:  2 actors, cuda, float16",
        "digest: config c1, model m1",
        "sample: 3666 rows/h, so 2.00 h and 5.132 GB of output",
        "dry run: nothing was written",
    ]


@pytest.mark.timeout(200)
def test_a_signal_leaves_with_4_a_note_and_no_worker(repository: Path, tmp_path: Path) -> None:
    assert write_scenes([f"output={tmp_path / 'records'}", "count=12"]) == 0
    output = tmp_path / "edited"
    words = [f"input={tmp_path / 'records'}", f"output={output}", "model=random", "steps=500", "actors=1"]
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen([sys.executable, "-m", "jobs.edit", *words], cwd=repository, stdout=log, stderr=log)
    deadline = time.monotonic() + START_S
    while not (output / "plan" / "plan.json").exists():
        assert job.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.2)
    started = psutil.Process(job.pid).children(recursive=True)
    assert started
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 4
    assert json.loads((output / "state" / "interrupted.json").read_text()) == {"signal": "SIGTERM"}
    assert not (output / "_SUCCESS").exists()
    assert (tmp_path / "log").read_text().endswith("\ninterrupted by SIGTERM\n")
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
