"""The suite `pipeline`: rates from what editors noted, the runs it makes, and what the tables say of them."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.timing.memory_use import MemorySample, growth_mb, memory_sample
from pipelines.timing.pipeline_bench import PipelineBenchConfig, make_tables, plan_runs, summarise
from pipelines.timing.pipeline_timing import median_gap, steady_rate
from vimaedit.errors import ConfigError
from vimaedit.performance.traced import Call, SleepingEditor, Trace, TracedEditor, read_trace
from vimaedit.types import EditRequest, Status


def trace(*calls: tuple[int, float, float, int]) -> Trace:
    made = tuple(Call(*each) for each in sorted(calls, key=lambda call: call[1]))
    return Trace(ready={call.process: 0.0 for call in made}, calls=made)


def test_the_steady_rate_counts_only_while_every_process_works() -> None:
    # Both work from 4 to 12: process 1 is busy for all of it but 1 s, process 2 for half of it.
    noted = trace((1, 0, 4, 8), (1, 4, 8, 8), (1, 9, 13, 8), (2, 4, 8, 2), (2, 10, 12, 3))
    assert steady_rate(noted) == pytest.approx((8 + 8 * 3 / 4 + 2 + 3) / 8)
    assert median_gap(noted) == pytest.approx(1.0)  # of 0, 1 and 2
    assert steady_rate(trace((1, 0, 4, 8), (2, 5, 9, 8))) is None
    assert median_gap(trace((1, 0, 4, 8))) is None


def test_editors_note_their_calls_and_the_sleeping_one_gives_every_request_a_result(tmp_path: Path) -> None:
    picture = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    editor = TracedEditor(SleepingEditor(0.02), tmp_path)
    request = EditRequest(id="a", image=picture, source_prompt="a cat", target_prompt="a dog")
    results = editor([request, None, request])
    editor([None])
    assert [result is None for result in results] == [False, True, False]
    assert results[0].status == Status.OK and np.array_equal(results[0].image, picture[:, ::-1])
    assert results[0].edit_mask.sum() > results[0].critical_mask.sum() > 0
    noted = read_trace(tmp_path)
    assert [call.edits for call in noted.calls] == [2, 0] and list(noted.ready) == [noted.calls[0].process]
    assert all(0.02 <= call.ended - call.began for call in noted.calls)
    assert noted.ready[noted.calls[0].process] <= noted.calls[0].began <= noted.calls[1].began


def test_each_number_of_actors_gets_the_same_share() -> None:
    runs = plan_runs(PipelineBenchConfig(actors=[1, 3], rows=10, model_rows=5, memory_rows=0))
    assert [(each["actors"], each["rows"], each["seconds"]) for each in runs] == [(1, 10, 3.0), (3, 30, 3.0), (1, 5, None)]
    assert runs[2]["model"] == "miniature" and runs[0]["model"] == "random"


def test_growth_is_the_slope_once_the_run_is_warm() -> None:
    def sample(rows: int, mb: float) -> MemorySample:
        return MemorySample(rows=rows, driver_mb=mb, actors_mb=0.0, workers_mb=0.0)

    steep_then_flat = [sample(0, 10), sample(10, 90), *(sample(rows, 100 + rows / 500) for rows in range(200, 1100, 100))]
    assert growth_mb(steep_then_flat, "driver_mb") == pytest.approx(2.0)
    assert growth_mb(steep_then_flat[:2], "driver_mb") is None
    own = memory_sample(7, [])
    assert own.rows == 7 and own.driver_mb > 10 and own.actors_mb == 0  # workers: those of whatever Ray runs by now


def test_the_tables_set_ratios_beside_goals() -> None:
    config = PipelineBenchConfig(actors=[2], rows=10, model_rows=0, memory_rows=100)
    phases = dict.fromkeys(("imports", "edit"), 1.25)
    found = {"loop_rows_s": 5.0, "steady_rows_s": 9.5, "whole_rows_s": 8.0, "gap_s": 0.1234, "phases": phases, "memory": []}
    watched = {**found, "loop_rows_s": None, "memory": [vars(MemorySample(rows=9, driver_mb=1, actors_mb=2, workers_mb=3))]}
    scaled, memory = plan_runs(config)
    runs = [{**scaled, **summarise(scaled, found)}, {**memory, **summarise(memory, watched)}]
    facts = {"processor": "a processor", "cores": 2, "ray": "2", "torch": "2"}
    texts = [table.text() for table in make_tables({"environment": facts, "settings": vars(config), "runs": runs})]
    assert len(texts) == 3
    for piece in ("0.950", ">= 0.96", "0.800", "0.123", "a processor"):
        assert piece in texts[0]
    assert "1.2" in texts[1] and "other workers" in texts[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actors": [0]}, "actors: got 0; allowed: 1 to 1000"),
        ({"image_format": "gif"}, "image_format: got 'gif'; allowed: auto, png, webp, jpeg"),
        (
            {"actors": [], "model_rows": 0, "memory_rows": 0},
            "actors, model_rows, memory_rows: got nothing to measure; allowed: at least one of them",
        ),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        PipelineBenchConfig(**options)
    assert str(refused.value) == message
