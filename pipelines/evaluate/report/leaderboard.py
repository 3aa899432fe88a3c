"""Several methods in one table for the console and for Markdown: the few metrics that a reader looks at first."""

from __future__ import annotations

from pipelines.evaluate.report.data import Board, MethodBoard
from pipelines.tables import Table
from vimaedit.metrics.names import METRICS

FILE_NAME = "leaderboard.md"
# What a benchmark with exact answers settles, and a CLIP that steers no edit, come first.
HEADLINES = (
    *("scene_success", "scene_edited_right", "clip_edited", "clip_whole", "target_psnr"),
    *("background_psnr", "structure_distance", "mask_iou"),
)
NOTHING = "-"


def leaderboard(board: Board) -> Table:
    """Return a row for each method with the number of edits that were scored, means and 95 % intervals, ranked by the first metric."""
    metrics = [name for name in HEADLINES if name in board.metrics]
    rows = [
        (method.name, str(method.scores["statuses"]["ok"]), *(_cell(method, name) for name in metrics))
        for method in _ranked(board, metrics)
    ]
    titles = (f"{METRICS[name].title}{f' ({METRICS[name].unit})' if METRICS[name].unit else ''}" for name in metrics)
    return Table(
        title=f"{len(board.methods)} method{'s' if len(board.methods) > 1 else ''} on {board.records} records",
        columns=("method", "scored", *titles),
        rows=tuple(rows),
        note="Ranked by the first metric. Means of what was scored, with 95 % bootstrap intervals; the report has the other metrics, "
        "paired differences and the pictures.",
    )


def _ranked(board: Board, metrics: list[str]) -> list[MethodBoard]:
    if not metrics:
        return list(board.methods)
    first = metrics[0]
    sign = 1 if METRICS[first].higher_is_better is False else -1

    def rank(method: MethodBoard) -> tuple[bool, float]:
        found = method.mean(first)
        return (found is None, 0.0 if found is None else sign * found["mean"])

    return sorted(board.methods, key=rank)


def _cell(method: MethodBoard, name: str) -> str:
    found, metric = method.mean(name), METRICS[name]
    if found is None:
        return NOTHING
    mean, low, high = (f"{found[key] * metric.scale:.{metric.decimals}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
