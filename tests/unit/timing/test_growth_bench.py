"""The suite `growth`: what is measured, and what the tables expect of it."""

import pytest

from pipelines.timing.growth_bench import GrowthBenchConfig, make_tables, plan_points, summarise
from vimaedit.config import EditConfig
from vimaedit.errors import ConfigError
from vimaedit.performance.growth import Point, count_rows, measure_points
from vimaedit.performance.savings import SAVINGS


def test_every_law_varies_one_thing() -> None:
    planned = list(plan_points(GrowthBenchConfig(steps=3, edits=8)))
    assert [(law, value) for law, value, _ in planned[:4]] == [("edits", 8), ("edits", 16), ("steps", 3), ("steps", 15)]
    assert {tuple(sorted(point)) for law, _, point in planned if law == "batch"} == {("batch", "edits", "steps")}
    assert [point["batch"] for law, _, point in planned if law == "batch"] == [1, 2, 4, 8]
    assert all(point["batch"] % point["targets"] == 0 for law, _, point in planned if law.startswith("targets"))


def test_rows_follow_from_what_edits_of_one_picture_share() -> None:
    alone = Point(edits=8, batch=8, steps=10)
    shared = Point(edits=8, batch=8, steps=10, targets=4)
    assert count_rows(EditConfig(steps=10), alone) == 240
    assert count_rows(EditConfig(steps=10), shared) == 8 * 24 + 2 * 18  # up to the step that finds the first masks
    assert count_rows(EditConfig(steps=10, source_variance=False), shared) == 10 * 18


def test_a_point_is_measured_on_a_real_model() -> None:
    points = [Point(edits=2, batch=2, steps=1), Point(edits=4, batch=2, steps=2, targets=2, source_variance=False)]
    first, second = measure_points("random", points, rounds=2, threads=1)
    assert [each.rows for each in first] == [6, 20] and [each.rows for each in second] == [6, 20]
    assert all(0 < each.denoise_s < each.whole_s for each in (*first, *second))


def test_what_the_engine_saves_itself_can_be_undone() -> None:
    points = [Point(edits=1, batch=1, steps=5, without=saving) for saving in ("", *SAVINGS)]
    (figures,) = measure_points("random", points, rounds=1, threads=1)
    counted = [each.operations for each in figures]
    whole, others = counted[0], counted[1:]
    assert whole is not None and all(each is not None and each > 1.0005 * whole for each in others)
    assert [each.rows for each in figures] == [15, 20, 15, 15]
    assert others[0] is not None and 1.25 < others[0] / whole < 4 / 3  # four rows for three
    assert measure_points("random", [Point(edits=1, batch=1, steps=1)], rounds=1, threads=1)[0][0].operations is None


def test_tables_set_medians_beside_what_is_expected() -> None:
    config = GrowthBenchConfig(steps=10, edits=8)
    laws = []
    for law, value, point in plan_points(config):
        rows = count_rows(
            EditConfig(steps=point["steps"], source_variance=point.get("source_variance", True)),
            Point(**point),
        )
        amount = value if isinstance(value, int) else len(value)
        each = {"memory_mb": 7, "rows": rows, "operations": 11 * amount}
        figures = [{"denoise_s": s * amount, "whole_s": 2 * s * amount, **each} for s in (1.0, 9.0, 2.0)]
        laws.append({"law": law, "value": value, **point, **summarise(figures, law)})
    facts = {"processor": "a processor", "torch": "2"}
    settings = {"threads": 1, "model": "m", "rounds": 3}
    tables = make_tables({"environment": facts, "settings": settings, "laws": laws})
    assert [table.title for table in tables][:2] == ["By edits", "By steps"] and len(tables) == 7
    assert tables[0].rows[1] == ("16", "64.00", "32.00 to 288.00", "2.000", "2.00 +- 0.05", "7")
    assert tables[1].rows[1][3:5] == ("5.000", "5.0 +- 0.15")
    assert [row[4] for row in tables[5].rows] == ["1", "0.833", "0.750", "0.708"]  # (1 + 2 k) / 3 k
    assert tables[6].rows[3][0::4] == ("keys and values made once", f"{25 / 7:.3f}")
    assert "a processor" in tables[0].note


def test_too_few_edits_are_refused() -> None:
    with pytest.raises(ConfigError, match="edits: got 4; allowed: 8 to 4096"):
        GrowthBenchConfig(edits=4)
