"""`jobs.bench suite=pipeline` as a user runs it: real Ray, real Parquet, an editor that sleeps, and a model beside it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PHASES = ["imports", "ray", "plan", "actor", "wait", "edit", "write", "finish"]


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_runs_are_timed_from_start_to_end(repository: Path, tmp_path: Path) -> None:
    words = ["suite=pipeline", "actors=[2]", "rows=24", "batch=4", "seconds=0.5", "size=64", "model=random", "steps=1"]
    words += ["model_rows=8", "memory_rows=400", f"output={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.bench", *words], capture_output=True, text=True, cwd=repository, check=False
    )
    assert done.returncode == 0, done.stderr
    for title in ("Rows through the pipeline", "Where the time of a run goes", "Memory"):
        assert title in done.stdout
    numbers = json.loads((tmp_path / "pipeline.json").read_text())
    sleeping, model, memory = numbers["runs"]
    assert sleeping["rows"] == 48 and list(sleeping["phases"]) == PHASES
    assert min(sleeping["phases"].values()) >= -0.1
    assert 7 < sleeping["loop_rows_s"] <= 8  # four rows in half a second
    assert 0 < sleeping["whole_ratio"] < 1
    assert sleeping["steady_ratio"] is None or 0 < sleeping["steady_ratio"] <= 1.05
    assert model["seconds"] is None and model["loop_rows_s"] > 0
    assert memory["loop_rows_s"] is None and memory["memory"]["driver_mb"]["most_mb"] > 50
    assert memory["memory"]["actors_mb"]["most_mb"] > 50
