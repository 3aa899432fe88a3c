"""`jobs.bench suite=engine` as a user runs it, on the smallest model."""

import json
import subprocess
import sys
from pathlib import Path

from vimaedit.miniature.random_bundle import random_bundle


def test_the_engine_takes_less_memory_than_all_maps_and_gives_the_same(repository: Path, tmp_path: Path) -> None:
    words = ["suite=engine", f"model={random_bundle()}", "steps=4", "batch=1", "rounds=1", "sides=[maps]", f"output={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.bench", *words], capture_output=True, text=True, cwd=repository, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "How much less the engine takes" in done.stdout and "maps" in done.stdout
    numbers = json.loads((tmp_path / "engine.json").read_text())
    assert [(each["side"], each["batch"]) for each in numbers["sides"]] == [("fused", 1), ("maps", 1)]
    assert all(each["cpu_s"] > 0 for each in numbers["sides"])
    same = numbers["same_results"]
    assert same["mask_pixels"] == 0 and same["latents"] < same["latents_tolerance"]
    assert numbers["ceilings"]["matmul_gflops"] > 1
    assert (tmp_path / "engine.md").read_text().startswith("## Denoising, 4 steps")
