"""`jobs.evaluate`: from a benchmark as published to the report; again, it does what is missing only."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs._cli.methods import read_methods
from jobs._cli.options import parse_command_line
from jobs.evaluate import REQUIRED, main
from jobs.scenes import main as write_scenes
from pipelines.evaluate.begin import EvaluationSummary
from pipelines.evaluate.config import EvaluateConfig, edit_job, score_job
from pipelines.tables import Table
from tests.command_lines import instead
from tests.hosted import write_pix2pix
from tests.instruction_sets import drawn_edits, write_gedit
from tests.piebench_tree import write_mapping, write_tree
from vimaedit.models.files import recipe_config
from vimaedit.scenes.edits import CATEGORIES

COUNT = 6
pytestmark = pytest.mark.usefixtures("handlers")

NO_NETWORKS = ("scoring_clip=", "dino=")
QUICK = ("model=random", "steps=1", "actors=1", "threads=1", *NO_NETWORKS)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> Path:
    """An evaluation of a small benchmark as published, with one broken entry and one whose words its prompts lack."""
    folder = tmp_path_factory.mktemp("evaluate")
    mapping = write_tree(folder / "pie", COUNT + 1)
    first, second, *_ = mapping
    mapping[first].pop("editing_prompt")
    mapping[second]["blended_word"] = "zebra lion"
    write_mapping(folder / "pie", mapping)
    assert main([f"benchmark={folder / 'pie'}", f"output={folder / 'out'}", *QUICK]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def pix2pix(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An entry of a list of methods: a hosted pipeline, a model and steps of its own."""
    return f"pipeline model={write_pix2pix(tmp_path_factory.mktemp('model'))} steps=2 label=pix2pix"


def data_of(report: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', report.read_text(), re.DOTALL)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


@pytest.mark.timeout(900)
def test_a_published_benchmark_becomes_a_report(output: Path) -> None:
    run, scores = output / "runs" / "vimaedit", output / "scores"
    assert (run / "_SUCCESS").exists() and json.loads((run / "run.json").read_text())["counts"]["ok"] == COUNT
    rows = pq.read_table(scores / "vimaedit.parquet").to_pylist()
    records = pq.read_table(output / "benchmark" / "records.parquet").to_pylist()
    assert [row["id"] for row in rows] == [record["id"] for record in records] and len(rows) == COUNT
    assert all(row["status"] == "ok" and row["background_psnr"] is not None for row in rows)
    text = (output / "report.html").read_text()
    assert text.startswith("<!doctype html>") and "PIE-Bench: vimaedit" in text
    assert "1 of 7 entries of the benchmark are broken and left out" in text and "editing_prompt: got nothing" in text
    assert "random weights: the pictures mean nothing" in text and "Not measured: CLIP whole, CLIP edited" in text
    assert "missing_blend=ignore: phrases not found in 1 edits" in text and "blend=given" in text
    data = data_of(output / "report.html")
    assert [sample["id"] for sample in data["samples"]] == [row["id"] for row in rows]
    for sample, record in zip(data["samples"], records, strict=True):
        assert (sample["before"], sample["category"]) == (record["source_prompt"], record["category"])
        assert sample["source"] and sample["reference"] and sample["results"][0]["edited"] and not sample["picture"]
    psnr = [measure["key"] for measure in data["measures"]].index("background_psnr")
    assert data["samples"][0]["results"][0]["values"][psnr] == pytest.approx(rows[0]["background_psnr"], rel=1e-5)


@pytest.mark.timeout(900)
def test_again_it_does_what_is_missing_only(output: Path) -> None:
    words = [f"benchmark={output.parent / 'pie'}", f"output={output}", *QUICK]
    kept = [
        *output.glob("runs/vimaedit/data/*.parquet"),
        output / "scores/vimaedit.parquet",
        output / "benchmark/records.parquet",
    ]
    before = {place: place.stat().st_mtime_ns for place in kept}
    report = (output / "report.html").read_bytes()
    (output / "report.html").unlink()
    assert len(kept) > 2 and main(words) == 0
    assert {place: place.stat().st_mtime_ns for place in kept} == before
    assert (output / "report.html").read_bytes() == report
    (output / "scores/vimaedit.json").unlink()
    assert main(words) == 0
    assert (output / "scores/vimaedit.json").exists()
    assert before[kept[0]] == kept[0].stat().st_mtime_ns


@pytest.mark.timeout(900)
def test_other_settings_are_refused(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"benchmark={output.parent / 'pie'}", f"output={output}", *instead(QUICK, "steps=2")]) == 2
    assert "jobs.evaluate: output: got" in capsys.readouterr().err


@pytest.mark.timeout(900)
def test_several_methods_and_models_stand_side_by_side(
    tmp_path: Path, cluster: None, pix2pix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_scenes([f"output={tmp_path / 'records'}", "count=2", "size=128"]) == 0
    words = [
        f"benchmark={tmp_path / 'records'}",
        f"output={tmp_path / 'out'}",
        *QUICK,
        f"method=[p2p grounding=cross-attention, {pix2pix}]",
        "gallery=1",
    ]
    names = ["p2p-grounding-cross-attention", "pix2pix"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    assert "2 methods on 2 records" in said and "Edit right, rest kept by category" in said
    shown = (tmp_path / "out/leaderboard.md").read_text()
    assert all(f"| {name} | " in shown for name in names) and f"## Differences to {names[0]}, record by record" in shown
    runs = {name: json.loads((tmp_path / "out" / "runs" / name / "run.json").read_text()) for name in names}
    rows = {name: pq.read_table(tmp_path / "out" / "runs" / name / "data").to_pylist() for name in names}
    assert [row["method"] for row, *_ in rows.values()] == ["p2p", "pipeline"]
    assert [run["config"]["grounding"] for run in runs.values()] == ["cross-attention", "difference"]
    assert [run["config"]["steps"] for run in runs.values()] == [1, 2]
    assert [row["family"] for row, *_ in rows.values()] == ["sd1", "StableDiffusionInstructPix2PixPipeline"]
    assert len({run["model_digest"] for run in runs.values()}) == 2
    assert all(row["model_digest"] == runs[name]["model_digest"] for name in names for row in rows[name])
    for name in names:  # the pixel reader has judged all of them
        scores = pq.read_table(tmp_path / "out" / "scores" / f"{name}.parquet").to_pylist()
        assert all(row["scene_success"] is not None for row in scores)
    compared = json.loads((tmp_path / f"out/scores/{names[1]}.json").read_text())["compared"]
    assert compared["against"] == names[0] and compared["metrics"]["background_psnr"]["pairs"] == 2
    data = data_of(tmp_path / "out/report.html")
    assert data["methods"] == names and len(data["samples"]) == 1
    for sample in data["samples"]:
        assert sample["picture"] and [result["status"] for result in sample["results"]] == ["ok"] * 2
    text = (tmp_path / "out/report.html").read_text()
    assert "The first 1 of 2 records" in text and f"pix2pix − {names[0]}" in text and "Published" not in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_instructions_as_published_are_told_by_task(
    tmp_path: Path, cluster: None, pix2pix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = drawn_edits(2)
    write_gedit(tmp_path / "gedit", drawn)
    words = [
        f"benchmark={tmp_path / 'gedit'}",
        f"output={tmp_path / 'out'}",
        *QUICK,
        f"method=[vimaedit model=random-xl label=xl, {pix2pix}]",
    ]
    assert main(words) == 0
    said, tasks = capsys.readouterr().out, {CATEGORIES[each.category] for each in drawn}
    assert "2 methods on 2 records" in said and "Shift (px) by category" in said and all(task in said for task in tasks)
    text = (tmp_path / "out/report.html").read_text()
    assert "GEdit-Bench: xl, pix2pix" in text and "2 of 2 records come without captions" in text and "Published" not in text
    for name, family in (("xl", "sdxl"), ("pix2pix", "StableDiffusionInstructPix2PixPipeline")):
        rows = pq.read_table(tmp_path / "out" / "runs" / name / "data").to_pylist()
        assert all(row["family"] == family and row["model_digest"] for row in rows)
        assert [(row["instruction"], row["prompts_from"]) for row in rows] == [
            (each.edit.instruction, "instruction") for each in drawn
        ]
        scores = json.loads((tmp_path / "out" / "scores" / f"{name}.json").read_text())
        assert scores["overall"]["changed_fraction"]["count"] == 2 and set(scores["categories"]) == tasks
        assert not any(scores["overall"][absent]["count"] for absent in ("background_psnr", "mask_iou", "target_psnr"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_writes_nothing(tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert write_scenes([f"output={tmp_path / 'records'}", "count=2", "size=128"]) == 0
    capsys.readouterr()
    words = [f"benchmark={tmp_path / 'records'}", f"output={tmp_path / 'out'}", *QUICK, "dry_run=true"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "vimaedit" and lines[1] == "input:  1 files, 2 edits" and lines[-1] == "dry run: nothing was written"
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_a_published_benchmark_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mapping(tmp_path, {})
    assert main([f"benchmark={tmp_path}", f"output={tmp_path / 'out'}", "dry_run=true"]) == 2
    assert "a benchmark as published; allowed: records to edit, which jobs.ingest makes of it" in capsys.readouterr().err


def test_runs_follow_from_the_settings() -> None:
    config = EvaluateConfig(benchmark="pie", output="/out", method="vimaedit", steps=7, jpeg_quality=75, limit=5, device="cpu")
    job = edit_job(config, "/records")
    assert (job.input, job.output, job.steps, job.limit) == ("/records", "/out/runs/vimaedit", 7, 5)
    assert (job.blend, job.missing_blend, job.long_prompt, job.metrics, job.keep_source) == (
        "given",
        "ignore",
        "truncate",
        [],
        "true",
    )
    score = score_job(config, "/records", "vimaedit", "vimaedit")
    assert (score.benchmark, score.edited, score.output) == ("/records", "/out/runs/vimaedit", "/out")
    assert (score.name, score.against, score.jpeg_quality, score.limit, score.device) == ("vimaedit", "", 75, 5, "cpu")
    assert score_job(config, "/records", "other", "vimaedit").against == "vimaedit"
    assert edit_job(dataclasses.replace(config, label="other"), "/records").output == "/out/runs/other"


def test_the_settings_of_every_method_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark=b", "output=o", "method=[vimaedit, p2p]", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("method")] == [
        *("method: vimaedit", "methods: []", "method: p2p", "methods: []"),
    ]
    assert main(["benchmark=b", "method=[vimaedit, p2p]", "--print-config"]) == 2
    assert capsys.readouterr().err == "jobs.evaluate: output: got nothing; required: benchmark=... output=...\n"


def test_a_list_of_methods_is_an_option_of_its_own() -> None:
    words = ["benchmark=b", "output=o", "method=[vimaedit, p2p thresholds.edit=0.35]", "steps=2", "against=vimaedit"]
    configs, against = read_methods(parse_command_line(words), REQUIRED)
    edit = recipe_config("miniature").thresholds.edit
    assert [(each.method, each.steps, each.thresholds.edit) for each in configs] == [("vimaedit", 2, edit), ("p2p", 2, 0.35)]
    assert [each.names for each in configs] == [("vimaedit",), ("p2p-thresholds.edit-0.35",)] and against == "vimaedit"
    (alone,), against = read_methods(parse_command_line(["benchmark=method=[", "output=o", "method=p2p"]), REQUIRED)
    assert (alone.benchmark, alone.method, against) == ("method=[", "p2p", "")
    ablations = "[vimaedit, vimaedit grounding=given columns.given_mask=reference_mask, vimaedit model=random steps=4]"
    words = ["benchmark=b", "output=o", f"method={ablations}", "target_guidance=3"]
    configs, _ = read_methods(parse_command_line(words), REQUIRED)
    assert [(each.grounding, each.columns, each.model, each.steps) for each in configs] == [
        ("vimaedit", {}, "miniature", 50),
        ("given", {"given_mask": "reference_mask"}, "miniature", 50),
        ("vimaedit", {}, "random", 4),
    ]
    assert {each.target_guidance for each in configs} == {3.0}  # what is given holds for all, whatever their recipes
    models = "[vimaedit, pipeline model=a/b revision=main variant=fp16 dtype=bfloat16 ip_adapter= clip= label=hosted]"
    configs, _ = read_methods(parse_command_line([*words[:2], f"method={models}", "ip_adapter=c", "clip=d"]), REQUIRED)
    assert [(each.model, each.revision, each.variant, each.dtype, each.ip_adapter, each.clip) for each in configs] == [
        ("miniature", None, None, "auto", "c", "d"),
        ("a/b", "main", "fp16", "bfloat16", None, None),
    ]
    assert [each.names for each in configs] == [("vimaedit",), ("hosted",)]
    config = EvaluateConfig(benchmark="b", output="o", methods=["vimaedit", "p2p thresholds.edit=0.3 steps=7"])
    assert config.names == ("vimaedit", "p2p-thresholds.edit-0.3-steps-7")
    assert config.variants[1].options == {"thresholds.edit": "0.3", "steps": "7"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "benchmark, output: got nothing; required: benchmark=... output=..."),
        (["benchmark=b", "output="], "output: got nothing; it is required: output=PATH_OR_URL"),
        (["benchmark=b", "output=o", "method=paint"], "method: got 'paint'; allowed: vimaedit"),
        (["benchmark=b", "output=o", "method=[vimaedit, paint]"], "method: got 'paint'; allowed: vimaedit"),
        (
            ["benchmark=b", "output=o", "method=[vimaedit, vimaedit]"],
            "method: got vimaedit twice; allowed: every method once, or with",
        ),
        (
            ["benchmark=b", "output=o", "method=[vimaedit limit=3]"],
            "method: got 'limit=3' behind vimaedit; allowed: options of the",
        ),
        (
            ["benchmark=b", "output=o", "method=[vimaedit label=a/b]"],
            "method: got 'vimaedit label=a/b'; allowed: a name of at most 200 letters",
        ),
        (
            ["benchmark=b", "output=o", "method=[vimaedit label=p2p, p2p]"],
            "method: got p2p twice; allowed: every method once, or with",
        ),
        (
            ["benchmark=b", "output=o", "method=[vimaedit fast]"],
            "method: got 'fast' behind vimaedit; allowed: options of the edit",
        ),
        (
            ["benchmark=b", "output=o", "label=a/b"],
            "label: got 'a/b'; allowed: letters, digits, hyphens, dots, not a dot first",
        ),
        (["benchmark=b", "output=o", "against=paint"], "against: got 'paint'; allowed: vimaedit"),
        (["benchmark=b", "output=o", "metrics=[beauty]"], "metrics: got 'beauty'; allowed: background"),
        (["benchmark=b", "output=o", "jpeg_quality=0"], "jpeg_quality: got 0; allowed: 1 to 100"),
        (["benchmark=b", "output=o", "gallery=-1"], "gallery: got -1; allowed: 0 to 100000"),
        (["benchmark=b", "output=o", "thumbnail_px=8"], "thumbnail_px: got 8; allowed: 32 to 1024"),
        (["benchmark=b", "output=o", "limit=0"], "limit: got 0; allowed: 1 or more, or leave it out"),
        (["benchmark=b", "output=o", "input=c"], "input: got an unknown key; "),
    ],
)
def test_what_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"jobs.evaluate: {message}")


def test_the_summary_says_how_long_each_part_took() -> None:
    table = Table(title="1 method on 2 records", columns=("method", "CLIP edited"), rows=(("p2p", "22.1 [20.0, 24.0]"),))
    summary = EvaluationSummary(
        exit_code=0, report="/out/report.html", leaderboard=(table,), seconds={"ingest": 1.25, "edit p2p": 7.0}, warnings=()
    )
    first, second, *shown, last = summary.text().splitlines()
    assert [first, second, last] == ["ingest: 1.2 s", "edit p2p: 7.0 s", "report: /out/report.html"]
    assert shown == ["", *table.text().splitlines(), ""]
    stopped = EvaluationSummary(
        exit_code=5, report=None, leaderboard=(), seconds={}, warnings=(), stop_reason="p2p: 101 of the last 200 failed"
    )
    assert stopped.text() == "stopped early: p2p: 101 of the last 200 failed"
