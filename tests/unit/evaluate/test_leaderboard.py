from __future__ import annotations

import dataclasses

from pipelines.evaluate.report.data import Board
from pipelines.evaluate.report.leaderboard import leaderboard
from tests.report_board import METHODS, make_board


def board(means: list[float | None], metric: str) -> Board:
    """A board whose methods have these means of one metric."""
    made = make_board(12, METHODS[: len(means)], piebench=False)
    methods = []
    for method, mean in zip(made.methods, means, strict=True):
        scores = {**method.scores, "overall": {**method.scores["overall"]}}
        found = {"mean": mean, "low": mean, "high": mean, "count": 0 if mean is None else 12, "nan": 0, "infinite": 0}
        scores["overall"][metric] = {**found, "missing": 12 if mean is None else 0}
        methods.append(dataclasses.replace(method, scores=scores))
    return dataclasses.replace(made, methods=tuple(methods))


def test_methods_are_ranked_by_what_an_exact_answer_settles_and_absent_values_come_last() -> None:
    table, _, by_category = leaderboard(board([0.2, None, 0.1, 0.4], "scene_success"))
    assert by_category.title == "Edit right, rest kept by category" and [row[0] for row in by_category.rows][-1] == "p2p"
    assert table.columns[-1] == "s/edit"
    assert table.columns[:4] == ("method", "scored", "Edit right, rest kept", "Edit right")
    assert [row[0] for row in table.rows] == ["pnp", "vimaedit", "masactrl", "p2p"]
    assert [row[2] for row in table.rows] == ["0.400 [0.400, 0.400]", "0.200 [0.200, 0.200]", "0.100 [0.100, 0.100]", "-"]
    assert [row[1] for row in table.rows] == ["11", "12", "12", "12"]  # one was rejected
    assert table.title == "4 methods on 12 records"


def test_the_report_shows_exact_answers_first_and_the_rest_in_its_order() -> None:
    metrics = board([0.2], "scene_success").metrics
    assert metrics[:3] == ["scene_success", "scene_edited_right", "structure_distance"]
    assert metrics.index("background_psnr") < metrics.index("mask_iou") < metrics.index("target_psnr")


def test_differences_are_shown_with_what_they_say() -> None:
    made = board([0.2, 0.5], "scene_success")
    found = {"value": 0.3, "low": 0.1, "high": 0.5, "pairs": 12}
    compared = {
        "against": "vimaedit",
        "metrics": {"scene_success": found, "background_psnr": {**found, "value": -1.0, "low": -2.0, "high": 0.0}},
    }
    second = dataclasses.replace(made.methods[1], scores={**made.methods[1].scores, "compared": compared})
    _, differences, _ = leaderboard(dataclasses.replace(made, methods=(made.methods[0], second)))
    assert differences.title == "Differences to vimaedit, record by record"
    ((name, *cells),) = differences.rows
    shown = dict(zip(differences.columns[1:], cells, strict=True))
    assert name == "p2p" and shown["Edit right, rest kept"] == "+0.300 [+0.100, +0.500] better"
    assert shown["Background PSNR (dB)"] == "-1.00 [-2.00, +0.00]" and shown["Mask IoU"] == "-"


def test_of_instructions_what_is_kept_and_moved_is_told_by_task_too() -> None:
    made = make_board(12, METHODS[:2])
    assert made.ingest is not None
    instructions = dataclasses.replace(made, ingest=dataclasses.replace(made.ingest, benchmark="GEdit-Bench"))
    by_task = [table.title for table in leaderboard(instructions) if table.title.endswith("by category")]
    assert len(by_task) == len(set(by_task)) and "Background PSNR (dB) by category" in by_task
    assert len([table for table in leaderboard(made) if table.title.endswith("by category")]) == 1
