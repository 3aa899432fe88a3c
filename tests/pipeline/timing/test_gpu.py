"""`jobs.bench suite=gpu` runs through on a CPU with the smallest model: every section, both controls."""

import json
import subprocess
import sys
from pathlib import Path

from vimaedit.miniature.random_bundle import random_bundle


def test_every_section_is_measured(repository: Path, tmp_path: Path) -> None:
    words = [f"model={random_bundle()}", "device=cpu", "dtype=float32", "steps=2", "rows=[1]", "backends=[math]"]
    words += ["compiled_rows=[]", "batches=[1,2]", "vae_batches=[1]", "compiled_batches=[1]", "compiler=eager"]
    words += ["matrix=64", "copy_mb=1", "repeats=1"]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.bench", "suite=gpu", f"output={tmp_path}", *words],
        capture_output=True,
        text=True,
        cwd=repository,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "gpu.json").read_text())["figures"]
    assert [(each["side"], each["mode"], each["at_once"]) for each in figures if each["section"] == "edits"] == [
        ("fused", "eager", 1),
        ("fused", "eager", 2),
        ("stock", "eager", 1),
        ("maps", "eager", 1),
        ("fused", "compiled", 1),
    ]
    assert {each["section"] for each in figures} == {"environment", "ceilings", "row", "rows", "edits", "vae"}
    assert all(each["s_per_edit"] > 0 for each in figures if each["section"] == "edits")
    rows = [each for each in figures if each["section"] == "rows"]
    assert [each["layout"] for each in rows] == ["NCHW", "NHWC"] and all(each["ms_per_row"] > 0 for each in rows)
    for title in ("UNet forward passes", "Whole edits", "Autoencoder", "How much faster the engine is"):
        assert title in done.stdout
