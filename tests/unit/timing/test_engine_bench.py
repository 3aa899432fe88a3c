"""The suite `engine`: what is measured against what, and what the tables say of it."""

import pytest

from pipelines.timing.engine_bench import (
    EngineBenchConfig,
    SideRun,
    make_tables,
    plan_sides,
    ratios,
    run_engine_bench,
    summarise,
)
from vimaedit.errors import ConfigError

FACTS = {"processor": "a processor", "cores": 2, "torch": "2", "diffusers": "0"}


def runs(side: str, batch: int, *seconds: float, memory: float) -> list[SideRun]:
    return [SideRun(side=side, batch=batch, cpu_s=each, wall_s=2 * each, memory_mb=memory) for each in seconds]


def test_each_side_runs_once_in_a_round_and_the_engine_also_with_a_batch() -> None:
    assert plan_sides(EngineBenchConfig()) == [("fused", 4), ("fused", 1), ("stock", 1), ("maps", 1)]
    assert plan_sides(EngineBenchConfig(batch=1, sides=["maps"])) == [("fused", 1), ("maps", 1)]


def test_medians_of_the_rounds_give_the_ratios() -> None:
    measured = [
        *runs("fused", 3, 2.0, 1.0, 9.0, memory=50),
        *runs("fused", 1, 2.5, 2.5, 2.5, memory=20),
        *runs("maps", 1, 5.0, 30.0, 10.0, memory=700),
    ]
    sides = [summarise(measured, *each) for each in (("fused", 3), ("fused", 1), ("maps", 1))]
    assert sides[0] == {
        "side": "fused",
        "batch": 3,
        "cpu_s": 2.0,
        "cpu_s_range": [1.0, 9.0],
        "wall_s": 4.0,
        "memory_mb": 50,
    }
    assert ratios(sides) == [{"against": "maps", "cpu": 5.0, "cpu_one_edit": 4.0, "memory_one_edit": 35.0}]


def test_the_tables_name_conditions_and_ratios() -> None:
    sides = [summarise(runs(*each, memory=10), *each[:2]) for each in (("fused", 3, 2.0), ("fused", 1, 2.0), ("stock", 1, 3.0))]
    numbers = {
        "environment": FACTS,
        "settings": {"model": "m", "steps": 7, "batch": 3, "threads": 1, "rounds": 1},
        "ceilings": {"matmul_gflops": 99.6, "copy_gb_s": 7.25},
        "sides": sides,
        "ratios": ratios(sides),
        "same_results": {"latents": 2e-6, "mask_pixels": 0, "mask_pixels_of": 70},
    }
    text = "\n".join(table.text() for table in make_tables(numbers))
    for piece in ("7 steps", "a processor", "1.50x", "100", "7.2", "2.0e-06", "0 mask pixels of 70"):
        assert piece in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": ["maps", "fast"]}, "sides: got 'fast'; allowed: fused, stock, maps"),
        ({"rounds": 0}, "rounds: got 0; allowed: 1 to 100"),
        ({"model": ""}, "model: got an empty string; allowed: small-sd15, or a bundle folder"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        EngineBenchConfig(**options)
    assert str(refused.value) == message


def test_a_model_that_is_not_there_is_refused_with_the_side_s_own_words(tmp_path) -> None:
    with pytest.raises(ConfigError, match="model: got"):
        run_engine_bench(EngineBenchConfig(model=str(tmp_path / "none"), rounds=1, batch=1, sides=["fused"]), lambda text: None)
