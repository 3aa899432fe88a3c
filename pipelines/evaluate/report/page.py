"""The report: one HTML file that opens without a network, with everything inside."""

from __future__ import annotations

import base64
import json
import math
import re
from importlib.resources import files
from string import Template
from typing import Any

from pipelines.evaluate.report.data import Board, MethodBoard, Result, Sample
from pipelines.evaluate.report.plots import Dot, Point, colour_of, dots, scatter
from pipelines.evaluate.report.tables import (
    FIGURE_OF,
    category_table,
    comparison_table,
    provenance,
    summary_table,
    title,
    warning_list,
)
from pipelines.ingest.instructions import FILLED
from pipelines.output.thumbnails import MASK_COLOURS
from pipelines.store.location import Location, exists, retry
from pipelines.store.masking import cut, without_secrets
from pipelines.tables import escaped
from vimaedit.metrics.names import METRICS
from vimaedit.piebench.published import PUBLISHED

# Which value stands for "the edit does what was asked" and which for "all else is as it was", most telling first.
ALIGNMENT = ("scene_edited_right", "judge_overall", "clip_edited", "clip_whole", "target_psnr")
PRESERVATION = ("background_psnr", "structure_distance", "background_lpips", "scene_others_unchanged", "shift_px")
TEMPLATES = files("pipelines.evaluate.report") / "template"
DIGEST = re.compile(rb'<meta name="made-of" content="([0-9a-f]+)">')
HEAD_BYTES = 2000  # of a page, in which its digest stands
TEXT_CHARACTERS = (
    1000  # of each text of a card: the time in which a browser compares two prompts grows with the product of both
)
NAMED_METHODS = 4  # in the heading, at most


def render(board: Board, digest: str = "") -> str:
    """Return the page; `digest` names what it was made of."""
    names = ", ".join(method.name for method in board.methods)
    if len(board.methods) > NAMED_METHODS:
        names = _counted(len(board.methods), "method")
    heading = f"{board.ingest.benchmark if board.ingest else 'Benchmark'}: {names}"
    texts = {
        "digest": escaped(digest),
        "title": escaped(heading),
        "lead": escaped(
            _counted(board.records, "record")
            + f", {_counted(len(board.methods), 'method')}, {len(board.categories)} categories."
        ),
        "notes": warning_list(notes(board)),
        "summary": summary_table(board) + comparison_table(board) + category_table(board),
        "plots": plots(board),
        "gallery": _gallery_text(board),
        "provenance": provenance(board),
    }
    data = script_json(without_secrets(gallery_data(board)))
    parts = {"style": _template("style.css"), "script": _template("gallery.js"), "data": data}
    return Template(_template("page.html")).substitute(texts, **parts)


def made_of(page: Location) -> str | None:
    """Return the digest of what a page was made of; None where there is no page, or it names none."""
    if not exists(page):
        return None
    found = DIGEST.search(retry(lambda: page.fs.cat_file(page.path, 0, HEAD_BYTES)))
    return found and found[1].decode()


def notes(board: Board) -> list[str]:
    """Say what a reader must know before the numbers: models without meaning, absent metrics, rows that were not edited."""
    own: dict[str, list[str]] = {}
    for method in board.methods:
        others = {kind: count for kind, count in method.warnings.items() if not _is_common(method, kind)}
        said = [*method.common_warnings, *(text for text in method.scores["warnings"] if not _is_of_absent(method, text))]
        if others:
            said.append(f"rows with warnings: {', '.join(f'{kind} {count}' for kind, count in sorted(others.items()))}")
        if unmatched := method.scores.get("unmatched"):
            said.append(f"{unmatched} edited pictures belong to no record")
        for text in said:
            own.setdefault(text, []).append(method.name)
    everyone = len(board.methods)
    texts = [*board.notes, *(text if len(names) == everyone else f"{', '.join(names)}: {text}" for text, names in own.items())]
    absent = {name: reason for method in board.methods for name, reason in method.scores["absent"].items()}
    by_reason: dict[str, list[str]] = {}
    for name, reason in absent.items():
        by_reason.setdefault(reason, []).append(METRICS[name].title if name in METRICS else name)
    texts += [f"Not measured: {', '.join(titles)} ({reason})" for reason, titles in by_reason.items()]
    if board.ingest is not None and board.ingest.left_out:
        texts.append(f"{len(board.ingest.left_out)} of {board.ingest.entries} entries of the benchmark are broken and left out")
    if board.ingest is not None and board.ingest.incomplete:
        texts.append(
            f"{len(board.ingest.incomplete)} fields that scoring needs are broken in the benchmark, so they are absent"
        )
    if board.ingest is not None and (filled := board.ingest.notes.get(FILLED)):
        texts.append(
            f"{filled} of {board.ingest.records} records come without captions: their target prompt is the instruction, which editors by "
            "description read and CLIP scores compare with"
        )
    return list(dict.fromkeys(texts))


def plots(board: Board) -> str:
    """Return alignment against preservation, and both by category; where one cannot be measured, a line that says so."""
    # Beside published figures by what was published.
    aligned = [name for name in ALIGNMENT if name in FIGURE_OF] if board.is_piebench else []
    alignment, preservation = (_first(board, names) for names in ((*aligned, *ALIGNMENT), PRESERVATION))
    figures = []
    if alignment and preservation:
        caption = f"{METRICS[alignment].title} against {METRICS[preservation].title}, means with 95 % intervals"
        caption += (
            "; hollow: published figures under their own conditions" if _has_published(board, alignment, preservation) else ""
        )
        figures.append(_figure(_plane(board, alignment, preservation), caption))
    else:
        missing = " and ".join(
            name for name, found in (("alignment", alignment), ("preservation", preservation)) if found is None
        )
        figures.append(
            f'<p class="note">No metric of {missing} was measured, so there is no plot of alignment against preservation.</p>'
        )
    for name in (alignment, preservation):
        if name and board.categories:
            rows = [(category, _dots(board, name, category)) for category in board.categories]
            rows = [(category, row) for category, row in rows if row]
            if rows:
                figures.append(_figure(dots(rows, title=title(METRICS[name])), f"{METRICS[name].title} by category"))
    return f'<div class="plots">{"".join(figures)}</div>'


def gallery_data(board: Board) -> dict[str, Any]:
    """Return what the gallery's script reads."""
    metrics = board.metrics
    better = {True: 1, False: -1, None: 0}
    return {
        "measures": [
            {
                "key": name,
                "title": METRICS[name].heading,
                "better": better[METRICS[name].higher_is_better],
                "digits": METRICS[name].decimals,
                "factor": METRICS[name].scale,
            }
            for name in metrics
        ],
        "methods": [method.name for method in board.methods],
        "categories": sorted({sample.category for sample in board.samples if sample.category}),
        "statuses": sorted({result.status for sample in board.samples for result in sample.results.values()}),
        "samples": [_sample_data(board, sample, metrics) for sample in board.samples],
    }


def script_json(value: Any) -> str:
    """Write JSON that may stand inside a script element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _sample_data(board: Board, sample: Sample, metrics: list[str]) -> dict[str, Any]:
    results = [sample.results.get(method.name) for method in board.methods]
    return {
        "id": cut(sample.id, TEXT_CHARACTERS),
        "category": sample.category or "",
        "instruction": None if sample.instruction is None else cut(sample.instruction, TEXT_CHARACTERS),
        "before": cut(sample.source_prompt, TEXT_CHARACTERS),
        "target": cut(sample.target_prompt, TEXT_CHARACTERS),
        "source": _coded(sample.source),
        "reference": _coded(sample.reference),
        "picture": _coded(sample.target),
        "results": [None if result is None else _result_data(result, metrics) for result in results],
    }


def _result_data(result: Result, metrics: list[str]) -> dict[str, Any]:
    return {
        "status": result.status,
        "message": None if result.message is None else cut(result.message, TEXT_CHARACTERS),
        "warnings": [cut(text, TEXT_CHARACTERS) for text in result.warnings],
        "values": [_plain(result.metrics.get(name)) for name in metrics],
        "mask": _coded(result.mask),
        "edited": _coded(result.edited),
    }


def _plain(value: float | None) -> float | str | None:
    """Return a value as JSON can hold it: six digits, and NaN and infinities as text."""
    if value is None or math.isfinite(value):
        return None if value is None else float(f"{value:.6g}")
    return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"


def _coded(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _first(board: Board, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if any(method.mean(name) for method in board.methods)), None)


def _has_published(board: Board, *metrics: str) -> bool:
    return board.is_piebench and all(name in FIGURE_OF for name in metrics)


def _plane(board: Board, alignment: str, preservation: str) -> str:
    points = []
    for index, method in enumerate(board.methods):
        x, y = (method.mean(name) for name in (preservation, alignment))
        if x is not None and y is not None:
            points.append(
                Point(
                    label=method.name,
                    x=x["mean"] * METRICS[preservation].scale,
                    y=y["mean"] * METRICS[alignment].scale,
                    x_range=_range(x, preservation),
                    y_range=_range(y, alignment),
                    colour=colour_of(index),
                )
            )
    if _has_published(board, alignment, preservation):
        for row in (each for each in PUBLISHED if not each.repeats):
            x_value, y_value = (getattr(row, FIGURE_OF[name]) for name in (preservation, alignment))
            points.append(Point(label=row.method, x=x_value, y=y_value, published=True))
    return scatter(points, x_title=title(METRICS[preservation]), y_title=title(METRICS[alignment]))


def _range(found: dict[str, Any], metric: str) -> tuple[float, float] | None:
    if found["low"] is None:
        return None
    return found["low"] * METRICS[metric].scale, found["high"] * METRICS[metric].scale


def _dots(board: Board, metric: str, category: str) -> list[Dot]:
    scale = METRICS[metric].scale
    return [
        Dot(
            label=method.name,
            value=found["mean"] * scale,
            low=None if found["low"] is None else found["low"] * scale,
            high=None if found["high"] is None else found["high"] * scale,
            colour=colour_of(index),
        )
        for index, method in enumerate(board.methods)
        if (found := method.mean(metric, category)) is not None
    ]


def _gallery_text(board: Board) -> str:
    texts = []
    if len(board.samples) < board.records:
        texts.append(f'<p class="note">The first {len(board.samples)} of {board.records} records (gallery=N shows more).</p>')
    if any(result.mask for sample in board.samples for result in sample.results.values()):
        names = ("neither", "the editor's mask alone", "the reference mask alone", "both, or the only one there is")
        marks = (
            f'<span><i style="background:rgb{colour}"></i>{name}</span>'
            for colour, name in zip(MASK_COLOURS, names, strict=True)
        )
        texts.append(f'<p class="legend">Masks: {"".join(marks)}</p>')
    return "".join(texts)


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escaped(caption)}</figcaption></figure>"


def _is_common(method: MethodBoard, kind: str) -> bool:
    return any(text.partition(":")[0] == kind for text in method.common_warnings)


def _is_of_absent(method: MethodBoard, text: str) -> bool:
    """Whether a warning says of a metric that it is absent, which is said once for all methods."""
    return any(reason in text for reason in method.scores["absent"].values())


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
