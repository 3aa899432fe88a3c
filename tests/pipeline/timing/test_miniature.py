"""`jobs.bench suite=miniature`: from drawn scenes to the table, going on where it was interrupted."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.bench import main
from jobs.scenes import main as write_scenes
from pipelines.cluster.progress import ProgressState
from pipelines.output.plan import StoredPlan, load_plan, make_plan, store_plan
from pipelines.records.scan import scan_inputs
from pipelines.records.schema import output_schema
from pipelines.scenes.bench import VARIANTS, BenchSummary, FewStepBenchConfig, SceneBenchConfig, run_scene_bench, variant_jobs
from pipelines.scenes.report import plain_text
from pipelines.store.location import locate
from vimaedit.errors import ConfigError

COUNT = 2


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put the signal handlers back that a job replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SceneBenchConfig:
    return SceneBenchConfig(
        output=str(tmp_path_factory.mktemp("bench") / "out"),
        model="random",
        split="validation",
        count=COUNT,
        steps=2,
        variants=["true-mask"],
        text_to_image=1,
        text_to_image_steps=2,
        retrieval=5,
        actors=1,
        threads=1,
    )


@pytest.fixture(scope="module")
def summary(config: SceneBenchConfig, cluster: None) -> BenchSummary:
    return run_scene_bench(config)


@pytest.mark.timeout(200)
def test_one_command_edits_scores_and_compares(config: SceneBenchConfig, summary: BenchSummary) -> None:
    output = Path(config.output)
    assert summary.exit_code == 0 and summary.places == (str(output / "table.json"), str(output / "table.md"))
    numbers = json.loads((output / "table.json").read_text())
    assert numbers == summary.numbers
    default, given = numbers["variants"]
    assert (default["variant"], given["variant"]) == ("default", "true-mask")
    assert default["rows"] == given["rows"] == COUNT and default["not_ok"] == 0
    assert given["mask_iou"] > 0.8 and given["differences"]["background_psnr"]["pairs"] <= COUNT
    assert sum(each["rows"] for each in numbers["categories"]) == COUNT
    model = numbers["model"]
    assert [(each["objects"], each["pictures"]) for each in model["text_to_image"]] == [(1, 1), (2, 1), (3, 1)]
    assert [each["clip"] for each in model["retrieval"]] == ["steering CLIP", "scoring CLIP"]
    assert numbers["facts"]["split"] == "validation" and numbers["facts"]["model_warning"]
    text = plain_text(numbers)
    assert "true-mask" in text and (output / "table.md").read_text().startswith("# Edits of drawn scenes")
    records = pq.read_table(output / "records" / "records.parquet")
    for name in ("default", "true-mask"):
        scores = pq.read_table(output / "scores" / f"{name}.parquet").to_pylist()
        assert [row["id"] for row in scores] == records["id"].to_pylist()
        assert all(row["status"] == "ok" and row["attributes"] for row in scores)
        assert (output / "runs" / name / "_SUCCESS").exists()
    assert pq.read_table(output / "scores" / "round_trip.parquet").num_rows == COUNT


@pytest.mark.timeout(200)
def test_it_goes_on_where_it_was_interrupted(config: SceneBenchConfig, summary: BenchSummary) -> None:
    runs = Path(config.output) / "runs"
    kept = (runs / "default" / "run.json").stat().st_mtime_ns
    (runs / "true-mask" / "_SUCCESS").unlink()
    for part in (runs / "true-mask" / "data").iterdir():
        part.unlink()
    states: dict[str, ProgressState] = {}
    again = run_scene_bench(dataclasses.replace(config, text_to_image=0, retrieval=0), states.__setitem__)
    assert list(states) == ["true-mask"] and states["true-mask"].done == COUNT
    assert (runs / "default" / "run.json").stat().st_mtime_ns == kept
    assert again.numbers is not None and summary.numbers is not None
    for first, second in zip(summary.numbers["variants"], again.numbers["variants"], strict=True):
        assert {**first, "seconds": None} == {**second, "seconds": None}


@pytest.mark.timeout(200)
def test_other_settings_are_refused(config: SceneBenchConfig, summary: BenchSummary) -> None:
    with pytest.raises(
        ConfigError, match="^output: got .*/runs/default, which holds a finished run with config_digest .* and not"
    ):
        run_scene_bench(dataclasses.replace(config, steps=3))
    with pytest.raises(ConfigError, match="which holds other records than count=5 split=validation scenes_seed=0 at 128 px"):
        run_scene_bench(dataclasses.replace(config, count=5))


@pytest.mark.timeout(200)
def test_a_run_on_other_records_is_not_touched(config: SceneBenchConfig, summary: BenchSummary, tmp_path: Path) -> None:
    folder, run = tmp_path / "other", locate(str(tmp_path / "out" / "runs" / "default"))
    assert write_scenes([f"output={folder}", "count=3"]) == 0
    inputs = scan_inputs(str(folder), {})
    plan = make_plan(inputs, batch_size=4, requests_per_unit=4, settled={})
    store_plan(run, StoredPlan(plan=plan, files=inputs.files, schema=output_schema(inputs.schema, inputs.columns)), inputs)
    with pytest.raises(
        ConfigError, match=r"^input: got .*made of: changed records.parquet \(\d+ bytes, was \d+\); allowed: the planned"
    ):
        run_scene_bench(dataclasses.replace(config, output=str(tmp_path / "out"), variants=["default"]))
    assert load_plan(run) is not None


def test_every_variant_is_the_recipe_with_its_own_changes() -> None:
    jobs = variant_jobs(SceneBenchConfig(output="out", eta=1.0, grounding_rounds=3, image_strength=0.7))
    assert list(jobs) == list(VARIANTS) and list(jobs)[0] == "default"
    assert all(job.grounding_rounds == 3 and job.image_strength == 0.7 for job in jobs.values())
    assert {name for name, job in jobs.items() if job.columns} == {"true-mask"}
    assert (jobs["dpmsolver-20"].solver, jobs["dpmsolver-20"].steps, jobs["default"].steps) == ("dpmsolver++", 20, 50)
    assert jobs["no-text-guidance"].text_guidance is False and jobs["default"].text_guidance
    assert len({job.output for job in jobs.values()}) == len(VARIANTS)


def test_variants_with_few_steps_follow_the_distilled_model_s_own_recipe() -> None:
    jobs = variant_jobs(FewStepBenchConfig(output="out", target_guidance=3.5, seed=7, missing_blend="ignore"))
    assert [name for name, job in jobs.items() if job.model == "miniature"] == [
        *("default", "ddim-20", "ddim-10", "dpmsolver-20", "dpmsolver-10"),
        *("guided-60", "guided-40", "guided-20", "ddim-10-guided-40"),
    ]
    others = variant_jobs(FewStepBenchConfig(output="out", method="infedit", grounding="auxiliary", steps=12))
    assert not {"guided-60", "ddim-10-guided-40"} & set(others) and "distilled-8" in others  # which cannot stop guiding
    assert (jobs["guided-40"].steps, jobs["guided-40"].guidance_end, jobs["default"].guidance_end) == (50, 0.4, 1.0)
    distilled, infedit = jobs["distilled-8"], jobs["distilled-infedit-4"]
    assert (distilled.model, distilled.method, distilled.steps, distilled.target_guidance) == (
        "miniature-lcm",
        "vimaedit",
        8,
        1.0,
    )
    assert (infedit.method, infedit.steps, infedit.grounding) == ("infedit", 4, "auxiliary")
    assert {job.seed for job in jobs.values()} == {7} and {job.missing_blend for job in jobs.values()} == {"ignore"}
    assert jobs["ddim-20"].target_guidance == 3.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "suite: got nothing; required: suite=..."),
        (["suite=fast", "output=out"], "suite: got 'fast'; allowed: miniature"),
        (["suite=fast", "output=out", "--sort"], "suite: got 'fast'; allowed: miniature"),
        (["suite=miniature", "output=out", "--sort"], "command line: got '--sort'; allowed: key=value"),
        (["suite=miniature"], "output: got nothing; required: suite=... output=..."),
        (["suite=miniature", "output="], "output: got nothing; it is required: output=PATH_OR_URL"),
        (["suite=miniature", "output=out", "variants=[none]"], "variants: got 'none'; allowed: default, no-image-guidance"),
        (["suite=miniature", "output=out", "split=all"], "split: got 'all'; allowed: train, validation, test"),
        (["suite=miniature", "output=out", "count=0"], "count: got 0; allowed: 1 to 4294967296"),
        (["suite=miniature", "output=out", "retrieval=-1"], "retrieval: got -1; allowed: 0 to 10000"),
        (["suite=miniature", "output=out", "text_to_image=-1"], "text_to_image: got -1; allowed: 0 to 10000"),
        (["suite=miniature", "output=out", "step=3"], "step: got an unknown key; did you mean steps?"),
        (
            ["suite=miniature", "output=out", "image_guidance=false"],
            "variants: no-text-guidance does not go with the other options (text_guidance, image_guidance: got false for both",
        ),
    ],
)
def test_what_is_refused(handlers: None, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"jobs.bench: {message}")


def test_help_names_the_suites_and_the_keys_of_each(handlers: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "suite=miniature edits drawn scenes" in capsys.readouterr().out
    assert main(["suite=miniature", "--help"]) == 0
    text = capsys.readouterr().out
    assert "scoring_clip" in text and "grounding_rounds" in text and "usage: python -m jobs.bench" in text
