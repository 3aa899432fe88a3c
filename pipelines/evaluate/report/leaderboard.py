"""Several methods in tables for the console and for Markdown: the few metrics that a reader looks at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.evaluate.report.data import Board, MethodBoard
from pipelines.score.table import verdict
from pipelines.tables import Table
from vimaedit.metrics.names import METRICS

FILE_NAME = "leaderboard.md"
# What a benchmark with exact answers settles, and a CLIP that steers no edit, come first.
HEADLINES = (
    *(
        "scene_success",
        "scene_edited_right",
        "scene_others_unchanged",
        "judge_overall",
        "clip_edited",
        "clip_whole",
        "target_psnr",
    ),
    *("background_psnr", "structure_distance", "mask_iou", "shift_px"),
)
OF_TASKS = ("judge_overall", "background_psnr", "shift_px")  # also by category where that is the task of an instruction
NOTHING = "-"


def leaderboard(board: Board) -> list[Table]:
    """Return the methods ranked by the first metric, their paired differences, and the first metric by category (of a benchmark of
    instructions: what is done, kept and moved too), as far as there are any."""
    metrics = [name for name in HEADLINES if name in board.metrics]
    by_task = [name for name in OF_TASKS if name in metrics[1:] and board.ingest is not None and not board.is_piebench]
    ranked = _ranked(board, metrics)
    tables = [
        _means(board, ranked, metrics),
        _differences(ranked, metrics),
        *(_by_category(board, ranked, name) for name in (*metrics[:1], *by_task)),
    ]
    return [table for table in tables if table.rows]


def _means(board: Board, ranked: Sequence[MethodBoard], metrics: Sequence[str]) -> Table:
    return Table(
        title=f"{len(board.methods)} method{'s' if len(board.methods) > 1 else ''} on {board.records} records",
        columns=("method", "scored", *(METRICS[name].heading for name in metrics), "s/edit"),
        rows=tuple(
            (
                method.name,
                str(method.scores["statuses"]["ok"]),
                *(_cell(method, name) for name in metrics),
                NOTHING if method.seconds_per_edit is None else f"{method.seconds_per_edit:.2f}",
            )
            for method in ranked
        ),
        note="Ranked by the first metric. Means of what was scored, with 95 % bootstrap intervals; on drawn scenes an edit without a "
        "picture is not right. The report has the other metrics and the pictures.",
    )


def _differences(ranked: Sequence[MethodBoard], metrics: Sequence[str]) -> Table:
    """Return the methods less the one that they were compared with, record by record."""
    compared = [(method, found) for method in ranked if (found := method.scores["compared"])]
    return Table(
        title=f"Differences to {compared[0][1]['against']}, record by record" if compared else "",
        columns=("method", *(METRICS[name].heading for name in metrics)),
        rows=tuple(
            (method.name, *(_difference(name, found["metrics"].get(name)) for name in metrics)) for method, found in compared
        ),
        note="Means over the records that both have, with 95 % bootstrap intervals of the pairs; better, worse: the interval leaves out zero.",
    )


def _by_category(board: Board, ranked: Sequence[MethodBoard], metric: str) -> Table:
    categories = board.categories
    return Table(
        title=f"{METRICS[metric].heading} by category",
        columns=("method", *categories),
        rows=tuple((method.name, *(_mean(metric, method.mean(metric, each)) for each in categories)) for method in ranked)
        if len(categories) > 1
        else (),
    )


def _ranked(board: Board, metrics: Sequence[str]) -> list[MethodBoard]:
    if not metrics:
        return list(board.methods)
    first = metrics[0]
    sign = 1 if METRICS[first].higher_is_better is False else -1

    def rank(method: MethodBoard) -> tuple[bool, float]:
        found = method.mean(first)
        return (found is None, 0.0 if found is None else sign * found["mean"])

    return sorted(board.methods, key=rank)


def _cell(method: MethodBoard, name: str) -> str:
    found = method.mean(name)
    if found is None:
        return NOTHING
    mean, low, high = (METRICS[name].shown(found[key]) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _mean(name: str, found: Mapping[str, Any] | None) -> str:
    return NOTHING if found is None else METRICS[name].shown(found["mean"])


def _difference(name: str, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return NOTHING
    metric = METRICS[name]
    value, low, high = (metric.shown(found[key], "+") for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}] {verdict(metric, found)}".rstrip()
