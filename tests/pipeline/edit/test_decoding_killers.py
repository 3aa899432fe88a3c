"""A picture that kills the process which decodes it costs its own record, and nothing is done twice for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.edit.edit import run_edit
from tests.pipeline.conftest import MakeJob, MakePicture, write_records
from vimaedit.decoding import load_stored

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

# Every Python process with this on its path kills itself where it decodes a picture that ends in KILL, and notes it.
HOOK = """
import importlib.abc, importlib.machinery, os, signal, sys

class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "MODULE":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            load = module.LOAD
            def wrapped(data, **options):
                if data.endswith(b"KILL"):
                    with open(os.environ["DEATHS"], "a") as stream:
                        stream.write("death\\n")
                    os.kill(os.getpid(), signal.SIGSEGV)
                return load(data, **options)
            module.LOAD = wrapped
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Hook())
""".replace("MODULE", load_stored.__module__).replace("LOAD", load_stored.__name__)
PICTURES = ("image", "edited_image", "edit_mask", "critical_mask")
IDS = ("a", "b", "killer", "d", "e", "f", "g")


def test_a_picture_that_kills_its_decoder_is_quarantined(
    repository: Path, tmp_path: Path, make_job: MakeJob, make_picture: MakePicture
) -> None:
    records = [
        {
            "id": name,
            "image": make_picture(number) + (b"KILL" if name == "killer" else b""),
            "source_prompt": "a red cat on the lawn",
            "target_prompt": ["a red dog on the lawn", "a blue cat on the lawn"],
        }
        for number, name in enumerate(IDS)
    ]
    write_records(tmp_path / "in" / "a.parquet", records)
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'hook'}:{repository}", "DEATHS": str(tmp_path / "deaths")}
    command = [sys.executable, "-m", "jobs.edit", "model=random", "steps=1", "actors=1", "threads=1", "batch_size=4"]
    done = subprocess.run(
        [*command, f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 3, done.stderr[-3000:]  # one of seven is more than max_failed_fraction
    assert (tmp_path / "deaths").read_text() == "death\n" * 2

    run_edit(make_job(batch_size=4, output=str(tmp_path / "clean")))
    rows, clean = (pq.read_table(tmp_path / name / "data").to_pylist() for name in ("out", "clean"))
    assert [(row["id"], row["edit_index"]) for row in rows] == [(name, edit) for name in IDS for edit in range(2)]
    for row, undisturbed in zip(rows, clean, strict=True):
        assert undisturbed["status"] == "ok"
        if row["id"] != "killer":
            assert (row["status"], row["attempts"]) == ("ok", 1)
            assert all(row[name] == undisturbed[name] for name in PICTURES), row["id"]
            continue
        assert (row["status"], row["error_stage"], row["error_type"]) == ("quarantined", "decode", "process_died")
        assert row["attempts"] == 2 and row["edited_image"] is None and row["image"] is None
        assert row["error_message"] == (
            "record 'killer': the decoding process died 2 times on this picture (it ended by signal SIGSEGV)"
        )
