"""Copies of weights on a node: made once, verified, and made again where they are not whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cluster import weights
from pipelines.cluster.weights import local_copy, with_absolute_names
from pipelines.output.config import EditJobConfig
from pipelines.score.config import ScoreConfig
from pipelines.store import location as storage
from pipelines.store.patience import ATTEMPTS
from vimaedit.config import Lora
from vimaedit.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(weights, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "weights.safetensors").write_bytes(b"w" * 1009)
    (folder / "config.json").write_bytes(b"{}")
    return folder


def test_a_copy_is_made_once_for_each_state(model: Path, cache: Path) -> None:
    first = Path(local_copy("model", f"file://{model}"))
    assert (first / "unet" / "weights.safetensors").read_bytes() == b"w" * 1009
    (first / "config.json").write_bytes(b"[]")  # of the same size: not copied again, so it stays
    assert local_copy("model", f"file://{model}") == str(first)
    assert (first / "config.json").read_bytes() == b"[]"
    (model / "config.json").write_bytes(b"{1:2}")
    second = Path(local_copy("model", f"file://{model}"))
    assert second != first and (second / "config.json").read_bytes() == b"{1:2}"


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_copy_that_is_not_whole_is_made_again(model: Path, damage: str) -> None:
    copied = Path(local_copy("model", f"file://{model}")) / "unet" / "weights.safetensors"
    if damage == "truncate":
        copied.write_bytes(b"w" * 503)
    else:
        copied.unlink()
    local_copy("model", f"file://{model}")
    assert copied.read_bytes() == b"w" * 1009


def test_a_transfer_that_breaks_off_is_tried_again_and_leaves_no_copy(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = model / "unet" / "weights.safetensors"
    place = storage.locate(str(file))
    whole = type(place.fs).get_file
    broken: list[str] = []

    def breaks_off(fs: object, source: str, destination: str) -> None:
        whole(fs, source, destination)
        if len(broken) < most:
            broken.append(destination)
            Path(destination).write_bytes(b"w" * 7)

    monkeypatch.setattr(type(place.fs), "get_file", breaks_off)
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    most = 10**6
    with pytest.raises(ConnectionError, match="weights.safetensors: got 7 of 1009 bytes$"):
        local_copy("clip", f"file://{file}")
    assert len(broken) == ATTEMPTS and [path for path in cache.iterdir() if path.suffix != ".lock"] == []
    broken.clear()
    most = 1
    assert Path(local_copy("clip", f"file://{file}")).read_bytes() == b"w" * 1009 and len(broken) == 1


def test_an_empty_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(
        ConfigError, match="^clip: got 'file://.*/nothing', where there is no file; allowed: the URL of a model"
    ):
        local_copy("clip", f"file://{tmp_path}/nothing")


def test_names_mean_the_same_in_a_workers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets").mkdir()
    monkeypatch.chdir(tmp_path)
    networks = {"scoring_clip": "nets", "dino": "./gone", "lpips": "openai/hub-id", "lpips_heads": None}
    job = EditJobConfig(input="in", output="out", model="./m", clip="nets", lora=[Lora(path="a.safetensors")], **networks)
    score = ScoreConfig(benchmark="b", edited="e", output="o", **networks)
    for config in (job, score):
        found = with_absolute_names(config)
        expected = (f"{tmp_path}/nets", f"{tmp_path}/gone", "openai/hub-id", None)
        assert (found.scoring_clip, found.dino, found.lpips, found.lpips_heads) == expected
    found_job = with_absolute_names(job)
    assert (found_job.model, found_job.clip) == (f"{tmp_path}/m", f"{tmp_path}/nets")
    assert found_job.lora == [Lora(path=f"{tmp_path}/a.safetensors")]
