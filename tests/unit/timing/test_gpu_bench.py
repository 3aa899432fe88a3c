"""The suite `gpu`: what its tables make of the figures."""

import pytest

from pipelines.timing.gpu_bench import GpuBenchConfig, derived, make_tables, run_gpu_bench
from vimaedit.errors import ConfigError

FACTS = [
    {"section": "environment", "device": "a card", "torch": "2", "dtype": "float16"},
    {"section": "ceilings", "matmul_tflops": 700.0, "copy_tb_s": 3.0},
    {"section": "row", "gflop": 803.3, "parameters_m": 859.5},
]


def edits(side: str, at_once: int, per_s: float, peak_gb: float | None, mode: str = "eager") -> dict:
    return {
        "section": "edits",
        "side": side,
        "mode": mode,
        "at_once": at_once,
        "s_per_edit": 1 / per_s,
        "edits_per_s": per_s,
        "mfu": 0.4,
        "peak_gb": peak_gb,
    }


def test_memory_is_told_per_further_edit_and_speed_beside_the_other_ways() -> None:
    figures = [
        edits("fused", 1, 1.0, 4.0),
        edits("fused", 5, 3.0, 6.0),
        edits("stock", 1, 1.5, 4.0),
        edits("maps", 1, 0.5, 15.0),
        edits("fused", 5, 4.5, 9.0, mode="compiled"),
        {"section": "edits", "side": "fused", "mode": "compiled", "at_once": 9},  # where nothing compiles
    ]
    assert derived(figures) == [
        {"section": "memory", "gb_per_further_edit": 0.5},
        {"section": "ratios", "mode": "eager", "against": "stock", "speed": 2.0},
        {"section": "ratios", "mode": "eager", "against": "maps", "speed": 6.0},
        {"section": "ratios", "mode": "compiled", "against": "stock", "speed": 3.0},
        {"section": "ratios", "mode": "compiled", "against": "maps", "speed": 9.0},
    ]
    assert derived([edits("fused", 1, 1.0, None), edits("fused", 2, 1.0, None)]) == []


def test_tables_are_made_of_what_was_found_before_a_failure() -> None:
    missing = {"section": "rows", "mode": "eager", "layout": "NHWC", "backend": "cudnn", "rows": 3, "peak_gb": 2.5}
    tables = make_tables([*FACTS, missing])
    assert [table.title for table in tables] == ["UNet forward passes"]
    assert tables[0].rows == (("eager", "NHWC", "cudnn", "3", "-", "-", "-", "2.5"),)
    assert "a card" in tables[0].note and "700.0 TFLOP/s" in tables[0].note and "803.3 GFLOP" in tables[0].note
    assert make_tables([]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backends": ["fast"]}, "backends: got 'fast'; allowed: flash, cudnn, efficient, math"),
        ({"batches": [0]}, "batches: got 0; allowed: 1 to 4096"),
        ({"dtype": "int8"}, "dtype: got 'int8'; allowed: float16, bfloat16, float32"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        GpuBenchConfig(**options)
    assert str(refused.value) == message


def test_a_device_that_is_not_there_ends_the_run_with_its_cause(tmp_path) -> None:
    config = GpuBenchConfig(model="random", device="cuda:63", output=str(tmp_path), matrix=8, copy_mb=1)
    with pytest.raises(ConfigError, match=r"device: got cuda:63, but this process sees"):
        run_gpu_bench(config, lambda text: None)
