"""`jobs.train_miniature` end to end with next to no time: the files it leaves load, edit, and keep within their sizes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jobs.train_miniature import main
from vimaedit.config import EditConfig, ModelConfig
from vimaedit.engine.load import load_editor
from vimaedit.scenes.edits import make_edit
from vimaedit.scenes.render import render_scene
from vimaedit.types import EditRequest, Status

MEGABYTE = 1_000_000

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    folder = tmp_path_factory.mktemp("family")
    command = [sys.executable, "-m", "jobs.train_miniature", f"output={folder}", "minutes=0.1", "batch=4"]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == f"bundle: {folder}/miniature"
    for stage in ("decoder", "denoiser", "clip", "scoring_clip", "ip_adapter"):
        assert f"{stage}: minutes" in done.stderr
    return folder


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_files_keep_within_their_sizes(family: Path) -> None:
    assert size_of(family / "miniature") <= 16 * MEGABYTE
    assert size_of(family / "scoring_clip") <= 4 * MEGABYTE


def test_the_record_names_every_stage(family: Path) -> None:
    record = (family / "training.md").read_text()
    for heading in ("## denoiser", "## decoder", "## clip", "## scoring_clip", "## ip_adapter"):
        assert heading in record


def test_the_bundle_edits(family: Path) -> None:
    edit = make_edit(5, "change_attribute_color")
    editor = load_editor(EditConfig(steps=2), ModelConfig(model=str(family / "miniature"), device="cpu"))
    request = EditRequest(
        id="a",
        image=render_scene(edit.source, 128),
        source_prompt=edit.source_prompt,
        target_prompt=edit.target_prompt,
        blend=edit.blend,
    )
    (result,) = editor([request])
    assert result.status == Status.OK and result.image is not None and result.image.shape == (128, 128, 3)
    # A decoder of a few steps draws little, but the picture went through it and came back in its own colours.
    assert np.abs(result.image.astype(int) - result.source.astype(int)).mean() < 128


def test_stock_pipelines_load_it(family: Path) -> None:
    from diffusers import StableDiffusionPipeline

    bundle = family / "miniature"
    pipe = StableDiffusionPipeline.from_pretrained(bundle / "sd", local_files_only=True)
    pipe.load_ip_adapter(str(bundle / "ip_adapter"), subfolder="models", weight_name="ip-adapter_sd15.safetensors")
    pipe.set_progress_bar_config(disable=True)
    shown = np.zeros((128, 128, 3), dtype=np.uint8)
    images = pipe("a red star", ip_adapter_image=[shown], num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 128, 128, 3) and np.isfinite(images).all()


def test_a_place_that_is_no_local_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["output=s3://bucket/family"]) == 2
    assert "output: got 's3://bucket/family'; allowed: a local folder" in capsys.readouterr().err
    assert main(["output=x", "minutes=0"]) == 2
    assert "minutes: got 0.0; allowed: 0.1 to 100000" in capsys.readouterr().err


def test_an_interrupted_training_leaves_no_process_and_goes_on(tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "-m", "vimaedit.miniature.training", f"output={tmp_path}", "stage=clip", "batch=4", "replicas=2"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    running = subprocess.Popen([*command, "minutes=30"], cwd=repository, env=environment, start_new_session=True)
    deadline = time.monotonic() + 200
    while not (tmp_path / "checkpoints" / "clip-1.weights").is_file():  # both replicas have made steps and met
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=20) == 4
    for _ in range(100):
        if not session_processes(running.pid):
            break
        time.sleep(0.2)
    assert not session_processes(running.pid)
    done = subprocess.run(
        [*command, "minutes=0.1"], cwd=repository, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == f"weights: {tmp_path}/checkpoints/clip.safetensors"


def session_processes(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ProcessLookupError):
            if os.getsid(int(path.name)) == session:
                found.append(int(path.name))
    return found
