"""`jobs.score` on a saved run and on anybody's pictures, through real Ray: rows, means, accounting, comparison, keeping."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs.score import main
from pipelines.edit.edit import run_edit
from pipelines.score.config import SCORE_SCHEMA, ScoreConfig
from pipelines.score.score import run_score
from pipelines.score.table import read_scores, read_summary
from pipelines.store.location import locate
from tests.pipeline.conftest import MakeJob
from tests.vision_language import write_llava
from vimaedit.config import ModelConfig
from vimaedit.metrics.background import background_metrics
from vimaedit.metrics.dino import KeyNetwork
from vimaedit.metrics.names import METRICS
from vimaedit.models.files import resolve_model

pytestmark = pytest.mark.timeout(290)

COUNT = 6
PLACE = {"actors": 1, "threads": 1}


def picture(struct: dict[str, Any]) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(struct["bytes"])))


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from jobs.scenes import main as write_scenes

    folder = tmp_path_factory.mktemp("bench")
    assert write_scenes([f"output={folder}", f"count={COUNT}", "size=64"]) == 0
    return folder / "records.parquet"


@pytest.fixture(scope="module")
def records(benchmark: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(benchmark).to_pylist()
    return rows


@pytest.fixture
def words(benchmark: Path, tmp_path: Path, cluster: None) -> Iterator[list[str]]:
    yield [f"benchmark={benchmark}", f"output={tmp_path / 'out'}", *(f"{name}={value}" for name, value in PLACE.items())]


def write_pictures(folder: Path, records: list[dict[str, Any]], column: str) -> None:
    folder.mkdir(parents=True)
    for record in records:
        Image.fromarray(picture(record[column])).save(folder / f"{record['id']}.png")


def test_a_saved_run_is_scored_with_its_masks_and_networks(
    benchmark: Path, records: list[dict[str, Any]], make_job: MakeJob, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert run_edit(make_job(input=str(benchmark), output=str(run))).exit_code == 0
    torch.manual_seed(0)
    torch.save(KeyNetwork(width=24, hidden=17, depth=2, patch=8, num_positions=785).state_dict(), tmp_path / "dino.pth")
    clip = str(resolve_model(ModelConfig(model="random")).clip)
    weights = {"scoring_clip": clip, "dino": str(tmp_path / "dino.pth"), "lpips": str(tmp_path / "nowhere.pth")}
    config = ScoreConfig(benchmark=str(benchmark), edited=str(run), output=str(tmp_path / "out"), **weights, **PLACE)
    seen = []
    summary = run_score(config, seen.append)
    assert summary.exit_code == 0 and summary.name == "vimaedit" and seen[-1].done == seen[-1].total == COUNT
    absent = f"background_lpips, target_lpips, lpips_whole: absent, since lpips: got '{tmp_path / 'nowhere.pth'}', which is no file or folder"
    assert len(summary.warnings) == 1 and summary.warnings[0].startswith(absent)
    table = read_scores(locate(config.output), "vimaedit")
    assert table is not None and table.schema.equals(SCORE_SCHEMA)
    results = {row["id"]: row for row in pq.read_table(run / "data").to_pylist()}
    for row, record in zip(table.to_pylist(), records, strict=True):
        assert (row["id"], row["status"], row["category"]) == (record["id"], "ok", record["category"])
        result = results[row["id"]]
        source, edited = picture(result["image"]), picture(result["edited_image"])
        mask = np.kron(picture(record["reference_mask"]) > 0, np.ones((2, 2), dtype=bool))  # 64 px on a canvas of 128
        plain = background_metrics(source, edited, mask)
        if mask.all():
            assert math.isnan(row["background_psnr"])
        else:
            assert row["background_psnr"] == pytest.approx(plain.background_psnr)
            assert row["background_ssim"] == pytest.approx(plain.background_ssim)
        assert row["changed_fraction"] == plain.changed_fraction and row["mask_fraction"] == plain.mask_fraction
        assert (row["mask_iou"] is None) == (result["edit_mask"] is None)
        assert (row["target_psnr"] is None) == (not record["target_determined"])
        assert row["scene_success"] in (0.0, 1.0) and row["structure_distance"] is not None and row["background_lpips"] is None
        assert 0 <= row["clip_whole"] <= 100 and row["seconds"] == result["seconds"] and row["grounded"] == result["grounded"]
    numbers = read_summary(locate(config.output), "vimaedit")
    assert numbers == summary.aggregates and numbers["method"] == "vimaedit" and numbers["statuses"]["ok"] == COUNT
    assert set(numbers["overall"]) == set(METRICS) and sum(each["records"] for each in numbers["categories"].values()) == COUNT
    before = (tmp_path / "out/scores/vimaedit.parquet").stat().st_mtime_ns
    assert run_score(config).aggregates == summary.aggregates  # kept: nothing has changed
    assert (tmp_path / "out/scores/vimaedit.parquet").stat().st_mtime_ns == before


def test_anybodys_pictures_are_scored_and_accounted_for(
    words: list[str], records: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "sources", records, "image")
    write_pictures(tmp_path / "answers", records, "reference_image")
    (tmp_path / "sources" / f"{records[0]['id']}.png").unlink()
    (tmp_path / "sources" / f"{records[1]['id']}.png").write_bytes(b"no picture")
    Image.fromarray(picture(records[0]["image"])).save(tmp_path / "sources" / "stranger.png")
    chosen = "metrics=[background,target,scene]"
    folder = tmp_path / "out" / "scores"
    assert main([*words, f"edited={tmp_path / 'answers'}", chosen]) == 0
    assert main([*words, f"edited={tmp_path / 'sources'}", "metrics=[background]", "jpeg_quality=75"]) == 3
    of_jpeg = json.loads((folder / "sources.json").read_text())["overall"]["background_psnr"]
    assert 20 < of_jpeg["mean"] < 45 and of_jpeg["infinite"] == 0
    capsys.readouterr()
    # Other settings under one name: scored anew.
    assert main([*words, f"edited={tmp_path / 'sources'}", chosen, "against=answers"]) == 3  # 2 of 6 have no score
    out = capsys.readouterr().out
    assert "requests: 4 ok, 1 missing, 1 unscored" in out and "edited pictures that belong to no request: 1" in out
    assert "sources less answers, request by request" in out and out.rstrip().endswith("scores/sources.json")
    answers, sources = (pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("answers", "sources"))
    assert [row["scene_success"] for row in answers] == [1.0] * COUNT
    for row, record in zip(answers, records, strict=True):
        assert row["target_psnr"] == (math.inf if record["target_determined"] else None)
        assert row["edited_file"] == f"{record['id']}.png" and row["edited_row"] is None
    assert [row["status"] for row in sources] == ["missing", "unscored", "ok", "ok", "ok", "ok"]
    assert sources[0]["message"] == "there is no edited picture of this request" and sources[0]["edited_file"] is None
    assert sources[1]["message"].startswith(f"record '{records[1]['id']}': edited_image: got 10 bytes: no picture format known")
    # Nothing is right where there is no picture; all else has no value there.
    verdicts = {name for name in METRICS if name.startswith("scene_")}
    assert all(row[name] == (0.0 if name in verdicts else None) for row in sources[:2] for name in METRICS)
    masked = [row for row in sources[2:] if not math.isnan(row["background_psnr"])]
    assert masked and all(row["background_psnr"] == math.inf and row["scene_success"] == 0.0 for row in masked)
    numbers = json.loads((folder / "sources.json").read_text())
    assert numbers["unmatched_names"] == ["stranger.png"] and numbers["overall"]["background_psnr"]["infinite"] == len(masked)
    assert len(masked) == of_jpeg["count"] and numbers["overall"]["background_psnr"]["mean"] is None
    difference = numbers["compared"]["metrics"]["scene_success"]
    assert difference == {"value": -1.0, "low": -1.0, "high": -1.0, "pairs": 6}


def test_everything_may_lie_in_a_bucket(bucket: str, records: list[dict[str, Any]], benchmark: Path, cluster: None) -> None:
    place = locate(f"{bucket}/scoring")
    place.fs.put_file(str(benchmark), (place / "bench/records.parquet").path)
    for record in records[:5]:
        place.fs.pipe_file((place / f"edited/deep/{record['id']}.png").path, record["image"]["bytes"])
    places = {
        name: f"{bucket}/scoring/{folder}" for name, folder in (("benchmark", "bench"), ("edited", "edited"), ("output", "out"))
    }
    summary = run_score(ScoreConfig(**places, metrics=["background"], **PLACE))
    assert summary.exit_code == 3 and summary.aggregates["statuses"]["ok"] == 5 and summary.name == "edited"
    assert summary.places == tuple(f"{bucket}/scoring/out/scores/edited.{kind}" for kind in ("parquet", "json"))
    table = read_scores(place / "out", "edited")
    assert table is not None and set(table.column("changed_fraction").to_pylist()) == {0.0, None}


def test_a_name_without_scores_is_no_comparison(
    words: list[str], records: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "sources", records, "image")
    assert main([*words, f"edited={tmp_path / 'sources'}", "against=other"]) == 2
    assert f"jobs.score: against: got 'other', which {tmp_path / 'out'} has no scores of; allowed" in capsys.readouterr().err
    (tmp_path / "out/scores").mkdir(parents=True)
    (tmp_path / "out/scores/sources.json").write_text("{}")
    assert main([*words, f"edited={tmp_path / 'sources'}", "against=sources"]) == 2
    assert "against: got 'sources', these scores themselves; allowed: the name of other scores" in capsys.readouterr().err


def test_a_model_in_the_actors_judges(words: list[str], records: list[dict[str, Any]], tmp_path: Path) -> None:
    write_pictures(tmp_path / "edits", records, "reference_image")
    model = write_llava(tmp_path / "model", answer='{"score": [9, 4]}')
    asked = ["metrics=[judge]", f"judge.model={model}", "judge.max_tokens=9", f"edited={tmp_path / 'edits'}", "name=edits"]
    assert main([*words, *asked]) == 0
    output = locate(str(tmp_path / "out"))
    table = read_scores(output, "edits")
    assert table is not None and table.column("judge_overall").to_pylist() == [4.0] * COUNT
    judged = read_summary(output, "edits")["judge"]
    assert judged["judge"] == str(model) and judged["compared"] == 12 and judged["ranked"] == 0.0  # it does not look
