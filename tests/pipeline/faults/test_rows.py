"""Requests that kill their process, that have no memory, processes killed from outside, and models that cannot be loaded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from jobs.edit import main
from pipelines.cluster.progress import ProgressState
from pipelines.edit.edit import run_edit
from pipelines.output.config import EditJobConfig
from tests.pipeline.conftest import MakeJob, MakePicture, pixels, write_records
from vimaedit.errors import ConfigError
from vimaedit.models.files import resolve_model
from vimaedit.types import Editor, EditRequest, EditResult

# Every Python process with this on its path kills itself where an editor meets the record "poison", and notes it. `DIE_LOADING`: it
# dies while it loads the model.
HOOK = """
import importlib.abc, importlib.machinery, os, signal, sys

class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in ("vimaedit.engine.editor", "vimaedit.models.networks"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            if name == "vimaedit.models.networks":
                if os.environ.get("DIE_LOADING"):
                    module.load_networks = die
                return
            encode = module.BatchEditor.encode
            def wrapped(self, edits):
                ids = {edit.request.id for edit in edits}
                if "poison" in ids:
                    die(sorted(ids))
                return encode(self, edits)
            module.BatchEditor.encode = wrapped
        spec.loader.exec_module = exec_module
        return spec

def die(*what):
    with open(os.environ["DEATHS"], "a") as stream:
        stream.write(f"{what[0]}\\n" if isinstance(what[0], list) else "loading\\n")
    os.kill(os.getpid(), signal.SIGKILL)

sys.meta_path.insert(0, Hook())
"""
PICTURES = ("image", "edited_image", "edit_mask", "critical_mask")
TARGETS = ("a blue cat on the lawn", "a red dog on the lawn")


def write_input(folder: Path, make_picture: MakePicture, ids: list[str]) -> None:
    write_records(
        folder / "a.parquet",
        [
            {
                "id": name,
                "image": make_picture(number),
                "source_prompt": "a red cat on the lawn",
                "target_prompt": TARGETS[number % 2],
            }
            for number, name in enumerate(ids)
        ],
    )


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [row for part in sorted((output / "data").glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


class Job:
    """`jobs.edit` with the hook, as a process of its own."""

    def __init__(self, repository: Path, folder: Path) -> None:
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(HOOK)
        self.repository, self.deaths = repository, folder / "deaths"
        self.environment = {**os.environ, "PYTHONPATH": f"{folder / 'hook'}:{repository}", "DEATHS": str(self.deaths)}

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "jobs.edit", "model=random", "steps=1", "actors=1", "threads=1", *words]
        return subprocess.Popen(
            command, cwd=self.repository, env={**self.environment, **environment}, stderr=subprocess.PIPE, text=True
        )

    def run(self, *words: str, **environment: str) -> tuple[int, str]:
        process = self.start(*words, **environment)
        _, errors = process.communicate(timeout=280)
        return process.returncode, errors

    def died_with(self) -> list[str]:
        return self.deaths.read_text().splitlines() if self.deaths.exists() else []


@dataclass(frozen=True)
class Killing:
    """Makes the job's editor, whose process kills itself where it meets the record "poison", notes it, and has no memory for "oom"
    beside another record."""

    deaths: Path

    def __call__(self, job: EditJobConfig) -> Editor:
        from vimaedit.engine.load import load_editor

        editor = load_editor(job, job)

        def edit(requests: Sequence[EditRequest | None]) -> list[EditResult | None]:
            ids = sorted(request.id for request in requests if request is not None)
            if "poison" in ids:
                with self.deaths.open("a") as stream:
                    stream.write(f"{ids}\n")
                os.kill(os.getpid(), signal.SIGKILL)
            if "oom" in ids and len(ids) > 1:
                raise MemoryError("no room for 7 GiB")
            return editor(requests)

        return edit


def test_a_killer_is_quarantined_and_its_neighbours_are_unharmed(
    handlers: None, tmp_path: Path, make_job: MakeJob, make_picture: MakePicture
) -> None:
    # The last four are the first four over again, all but the killer: seeds and slots are the same.
    ids = ["a", "b", "poison", "d", "oom", "f", "g", "h", "a2", "b2", "c2", "d2"]
    write_records(
        tmp_path / "in" / "a.parquet",
        [
            {
                "id": name,
                "image": make_picture(number % 8),
                "source_prompt": "a red cat on the lawn",
                "target_prompt": TARGETS[number % 2],
                "seed": number % 8,
            }
            for number, name in enumerate(ids)
        ],
    )
    summary = run_edit(make_job(batch_size=4), make_editor=Killing(tmp_path / "deaths"))
    assert summary.exit_code == 3  # one of twelve is more than max_failed_fraction
    assert (tmp_path / "deaths").read_text().splitlines() == [str(sorted(ids[:4])), "['poison']", "['poison']"]

    rows = rows_of(tmp_path / "out")
    assert [row["id"] for row in rows] == ids
    assert [row["status"] for row in rows] == ["ok", "ok", "quarantined", *["ok"] * 9]
    poison = rows[2]
    assert (poison["error_stage"], poison["error_type"], poison["attempts"]) == ("edit", "process_died", 3)
    assert poison["error_message"] == (
        "record 'poison': the editing process died 2 times while this request ran alone (its process was killed or crashed)"
    )
    assert poison["edited_image"] is None and poison["metrics"] is None
    for place in (0, 1, 3):
        assert pixels(rows[place]) == pixels(rows[place + 8]), ids[place]
        assert (rows[place]["attempts"], rows[place + 8]["attempts"]) == (2, 1)
    sizes = [[warning.split(" for")[0] for warning in row["warnings"] if "reduced_batch" in warning] for row in rows]
    reduced = "reduced_batch: edited in a batch of "
    assert sizes == [*[[]] * 4, [reduced + "1"], [reduced + "1"], [reduced + "2"], [reduced + "2"], *[[]] * 4]
    (stored,) = (tmp_path / "out" / "state" / "suspects").iterdir()
    deaths = {entry["input_row"]: (entry["died"], entry["died_alone"]) for entry in json.loads(stored.read_text())["requests"]}
    assert deaths == {0: (1, 0), 1: (1, 0), 2: (3, 2), 3: (1, 0)}
    words = [f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "batch_size=4", "model=random", "steps=1"]
    assert main(words) == 3  # as the job says of a finished run


@pytest.mark.faults
def test_an_actor_killed_from_outside_costs_no_row(tmp_path: Path, make_job: MakeJob, make_picture: MakePicture) -> None:
    ids = [f"r{number}" for number in range(12)]
    write_input(tmp_path / "in", make_picture, ids)
    killed: list[int] = []

    def kill_once(state: ProgressState) -> None:
        if 0 < state.done < state.total and not killed:
            workers = [each for each in psutil.Process().children(recursive=True) if each.name().startswith("ray::MapWorker")]
            actor = max(workers, key=psutil.Process.create_time)  # an earlier test's may still be on its way out
            killed.append(actor.pid)
            actor.send_signal(signal.SIGKILL)

    job = {"batch_size": 2, "steps": 20}
    summary = run_edit(make_job(**job), progress=kill_once)
    assert len(killed) == 1 and summary.counts["ok"] == 12
    run_edit(make_job(**job, output=str(tmp_path / "clean")))
    rows, clean = rows_of(tmp_path / "out"), rows_of(tmp_path / "clean")
    assert [row["id"] for row in rows] == ids
    assert all(left[name] == right[name] for left, right in zip(rows, clean, strict=True) for name in PICTURES)


def copy_bundle(folder: Path) -> Path:
    """Copy the built-in random model as a bundle folder."""
    bundle = folder / "bundle"
    shutil.copytree(resolve_model(EditJobConfig(input="in", output="out", model="random")).diffusers.parent, bundle)
    return bundle


def test_a_model_that_cannot_be_loaded_ends_the_run_with_the_cause(
    tmp_path: Path, make_job: MakeJob, make_picture: MakePicture
) -> None:
    write_input(tmp_path / "in", make_picture, ["a", "b"])
    bundle = copy_bundle(tmp_path)
    (weights,) = (bundle / "sd" / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])  # its digest can be taken all the same
    started = time.monotonic()
    with pytest.raises(ConfigError, match="^model: got "):
        run_edit(make_job(model=str(bundle)))
    assert time.monotonic() - started < 60
    assert not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.faults
def test_a_process_that_dies_while_it_loads_the_model_ends_the_run(
    repository: Path, tmp_path: Path, make_picture: MakePicture
) -> None:
    write_input(tmp_path / "in", make_picture, ["a", "b"])
    job = Job(repository, tmp_path)
    code, errors = job.run(f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", DIE_LOADING="1")
    assert code == 1
    assert "no editing actor could start: the process of an editing actor died 3 times in a row" in errors
    assert job.died_with() == ["loading"] * 3


@pytest.mark.faults
def test_another_driver_knows_the_suspects(repository: Path, tmp_path: Path, make_picture: MakePicture) -> None:
    write_input(tmp_path / "in", make_picture, ["a", "b", "poison", "d"])
    job = Job(repository, tmp_path)
    words = [f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "batch_size=4"]
    first = job.start(*words)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "out").glob("state/suspects/*.json")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    for process in psutil.Process(first.pid).children(recursive=True):
        process.kill()
    first.kill()
    first.communicate()
    before = len(job.died_with())
    code, errors = job.run(*words)
    assert code == 3, errors
    assert all(line == "['poison']" for line in job.died_with()[1:])
    assert before + 1 <= len(job.died_with()) <= before + 2
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["ok", "ok", "quarantined", "ok"]


@pytest.mark.faults
def test_a_dry_run_measures_past_a_killer(repository: Path, tmp_path: Path, make_picture: MakePicture) -> None:
    write_input(tmp_path / "in", make_picture, ["poison", "b", "c", "d"])
    job = Job(repository, tmp_path)
    words = [f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "batch_size=2", "dry_run=true"]
    code, errors = job.run(*words)
    assert code == 0, errors
    assert job.died_with() == ["['b', 'poison']"] * 2  # once more, for the node may have been to blame
    assert "unit 00000-000000000 cannot be measured: " in errors
