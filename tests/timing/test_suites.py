"""Every suite runs through at its smallest, and what it says of the engine holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.bare import bare_environment
from tests.timing import engine, gpu, growth, images, pipeline, selection, stock
from tests.timing.gpu_figures import GpuBenchConfig
from tests.timing.pipeline_run import median_gap, steady_rate
from tests.timing.points import SAVINGS, Point, measure_points
from tests.timing.process import MemorySample, growth_mb
from tests.timing.report import run_suite
from tests.timing.traced import Call, Trace

slow = pytest.mark.slow


def test_the_steady_rate_counts_only_while_every_process_works() -> None:
    def trace(*calls: tuple[int, float, float, int]) -> Trace:
        made = tuple(Call(*each) for each in sorted(calls, key=lambda call: call[1]))
        return Trace(ready={call.process: 0.0 for call in made}, calls=made)

    # Both work from 4 to 12: process 1 is busy for all of it but 1 s, process 2 for half of it.
    noted = trace((1, 0, 4, 8), (1, 4, 8, 8), (1, 9, 13, 8), (2, 4, 8, 2), (2, 10, 12, 3))
    assert steady_rate(noted) == pytest.approx((8 + 8 * 3 / 4 + 2 + 3) / 8)
    assert median_gap(noted) == pytest.approx(1.0)  # of 0, 1 and 2
    assert steady_rate(trace((1, 0, 4, 8), (2, 5, 9, 8))) is None
    assert median_gap(trace((1, 0, 4, 8))) is None


def test_growth_is_the_slope_once_the_run_is_warm() -> None:
    def sample(rows: int, mb: float) -> MemorySample:
        return MemorySample(rows=rows, driver_mb=mb, actors_mb=0.0, workers_mb=0.0)

    steep_then_flat = [sample(0, 10), sample(10, 90), *(sample(rows, 100 + rows / 500) for rows in range(200, 1100, 100))]
    assert growth_mb(steep_then_flat, "driver_mb") == pytest.approx(2.0)
    assert growth_mb(steep_then_flat[:2], "driver_mb") is None


def test_what_a_suite_cannot_measure_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_suite("engine", engine.EngineBenchConfig, engine.measure, ["sides=fast"]) == 2
    assert capsys.readouterr().err == "sides: got 'fast'; allowed: fused, stock, maps\n"
    assert run_suite("engine", engine.EngineBenchConfig, engine.measure, [f"output={tmp_path}/none/a.md"]) == 2
    assert "allowed: a Markdown file in a folder that is there" in capsys.readouterr().err


@pytest.mark.parametrize("suite", ["engine", "gpu"])
def test_the_engine_is_timed_with_what_a_bare_machine_has(suite: str, tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "-S", "-m", f"tests.timing.{suite}", "step=1"]
    environment = bare_environment(tmp_path, repository)
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "step: got an unknown option; allowed: output=... model=..." in done.stderr


@slow
def test_the_engine_takes_less_memory_than_all_maps_and_gives_the_same(tmp_path: Path) -> None:
    words = ["model=random", "steps=4", "batch=1", "rounds=1", "sides=maps", f"output={tmp_path}/figures.md"]
    assert run_suite("engine", engine.EngineBenchConfig, engine.measure, words) == 0
    text = (tmp_path / "figures.md").read_text()
    assert text.startswith("# `engine`, ") and "steps=4" in text and "## Denoising, 4 steps" in text
    assert " 0 mask pixels of " in text


@slow
def test_whole_edits_are_timed_beside_calls_of_the_library() -> None:
    tables = list(stock.measure(stock.StockBenchConfig(steps=1, edits=2, batch=[2], rounds=1)))
    assert [table.title for table in tables] == [f"Whole edits, 1 steps, model random-{kind}" for kind in ("xl", "sd3")]
    for table in tables:
        assert [row[:2] for row in table.rows] == [("engine", "2"), ("calls", "1")]
        assert all(float(row[2]) > 0 and float(row[4]) > 0 for row in table.rows)


@slow
def test_what_the_engine_saves_itself_can_be_undone() -> None:
    points = [Point(edits=1, batch=1, steps=5, without=saving) for saving in ("", *SAVINGS)]
    (figures,) = measure_points("random", points, rounds=1, threads=1)
    whole, *others = (each.operations for each in figures)
    assert whole is not None and all(each is not None and each > 1.0005 * whole for each in others)
    assert [each.rows for each in figures] == [15, 20, 15, 15]
    assert others[0] is not None and 1.25 < others[0] / whole < 4 / 3  # four rows for three


@slow
def test_growth_is_measured_by_every_law() -> None:
    tables = list(growth.measure(growth.GrowthBenchConfig(steps=1, rounds=1)))
    assert [table.title for table in tables] == [f"By {law}" for law in growth.NOTES]
    assert all(len(table.rows) > 1 for table in tables)


@slow
def test_every_section_of_a_device_is_measured() -> None:
    small = {"rows": [1], "backends": ["math"], "compiled_rows": [], "batches": [1, 2], "vae_batches": [1], "matrix": 64}
    config = GpuBenchConfig(
        model="random",
        device="cpu",
        dtype="float32",
        steps=2,
        compiled_batches=[1],
        compiler="eager",
        copy_mb=1,
        repeats=1,
        **small,
    )
    rows, edits, vae, ratios = gpu.measure(config)
    assert [row[:3] for row in edits.rows] == [
        ("fused", "eager", "1"),
        ("fused", "eager", "2"),
        ("stock", "eager", "1"),
        ("maps", "eager", "1"),
        ("fused", "compiled", "1"),
    ]
    assert all(float(row[3]) > 0 for row in edits.rows)
    assert [row[1] for row in rows.rows] == ["NCHW", "NHWC"] and len(vae.rows) == 2 and len(ratios.rows) == 4


@slow
def test_every_way_to_write_a_picture_is_measured() -> None:
    (table,) = images.measure(images.ImageBenchConfig(count=2, size=64, rounds=1))
    size = {row[:2]: float(row[4]) for row in table.rows}
    assert size["drawn scenes", "PNG 0"] > 64 * 64 * 3 / 1000 > size["drawn scenes", "WebP lossless 0"]
    assert size["fine grain", "PNG 1"] < size["grain of a photograph", "PNG 1"]
    assert not np.isnan(list(size.values())).any()


@slow
def test_selecting_is_that_of_brute_force() -> None:
    (table,) = selection.measure(selection.SelectionBenchConfig(rows=[3000], part_rows=64))
    (row,) = table.rows
    duplicates, kept = int(row[2]), int(row[3])
    assert row[0] == "3,000" and int(row[1]) == duplicates + kept and duplicates > 10 < kept
    assert row[-1] == "equal" and all(float(cell.replace(",", "")) > 0 for cell in row[4:9])


@slow
@pytest.mark.timeout(900)
def test_runs_are_timed_from_start_to_end() -> None:
    config = pipeline.PipelineBenchConfig(
        actors=[2], rows=24, batch=4, seconds=0.5, size=64, model="random", steps=1, model_rows=8, memory_rows=400
    )
    rates, phases, memory = pipeline.measure(config)
    sleeping, model = rates.rows
    assert 7 < float(sleeping[3]) <= 8  # four rows in half a second
    assert 0 < float(sleeping[6]) < 1 and float(model[3]) > 0
    assert all(float(cell) >= -0.1 for row in phases.rows for cell in row[2:])
    assert all(float(row[1]) > 50 for row in memory.rows[:2])
