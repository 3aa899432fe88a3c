"""The report's tables as HTML: the summary beside the published figures, categories, comparisons, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.evaluate.report.data import Board, MethodBoard
from pipelines.evaluate.report.plots import colour_of
from pipelines.tables import escaped, html_cell, html_row, html_table
from vimaedit.metrics.names import METRICS, SEVEN, Metric
from vimaedit.piebench.published import CONDITIONS, FIGURES, PUBLISHED

NOTHING = "–"
FIGURE_OF = dict(zip(SEVEN, FIGURES, strict=True))  # column -> figure of the published rows, both in the tables' scale


def summary_table(board: Board) -> str:
    """Return one row per method, under them the published figures where they are of this benchmark."""
    metrics = board.metrics
    head = ["method", *(title(METRICS[name]) for name in metrics), "edits", "s/edit"]
    rows = []
    for index, method in enumerate(board.methods):
        cells = [method_cell(method.name, index), *(_mean_cell(board, method, name) for name in metrics)]
        rows.append(
            html_row([*cells, html_cell(status_text(method.scores["statuses"])), html_cell(_seconds(method.seconds_per_edit))])
        )
    if board.is_piebench:
        for number, published in enumerate(PUBLISHED):
            values = {name: f"{getattr(published, figure):.2f}" for name, figure in FIGURE_OF.items()}
            cells = [html_cell(f"{escaped(published.method)} <small>{escaped(published.source)}</small>")]
            cells += [html_cell(values.get(name, NOTHING)) for name in metrics]
            rows.append(html_row([*cells, html_cell("700"), html_cell(NOTHING)], f"published{' first' if not number else ''}"))
    return html_table(head, rows) + _summary_notes(board)


def comparison_table(board: Board) -> str:
    """Return the paired differences of every method to the one it was compared with; nothing where none was."""
    compared = [(index, method) for index, method in enumerate(board.methods) if method.scores["compared"]]
    if not compared:
        return ""
    metrics = [name for name in board.metrics if METRICS[name].higher_is_better is not None]
    rows = []
    for index, method in compared:
        found = method.scores["compared"]
        cells = [method_cell(f"{method.name} − {found['against']}", index)]
        cells += [_difference_cell(METRICS[name], found["metrics"].get(name)) for name in metrics]
        rows.append(html_row(cells))
    note = "Mean over the records that both have, with 95 % bootstrap intervals of the pairs; bold where the interval leaves out zero."
    return (
        f"<h3>Paired differences</h3>{html_table(['methods', *(title(METRICS[name]) for name in metrics)], rows)}{_note(note)}"
    )


def category_table(board: Board) -> str:
    """Return the means by category, one row for each method in each."""
    if not board.categories:
        return ""
    metrics = board.metrics
    rows = []
    for category in board.categories:
        for index, method in enumerate(board.methods):
            records = method.scores["categories"].get(category, {}).get("records", 0)
            first = f'{escaped(category)}<small><i class="swatch" style="background:{colour_of(index)}"></i>{escaped(method.name)}</small>'
            rows.append(
                html_row(
                    [
                        html_cell(first),
                        html_cell(str(records)),
                        *(_mean_cell(board, method, name, category) for name in metrics),
                    ]
                )
            )
    table = html_table(["category", "records", *(title(METRICS[name]) for name in metrics)], rows)
    return f"<details><summary>Means by category</summary>{table}</details>"


def provenance(board: Board) -> str:
    """Return what the numbers depend on: the benchmark, the model, versions and settings of every run."""
    facts: dict[str, str] = {"benchmark": board.benchmark}
    if board.ingest is not None:
        facts["taken in"] = board.ingest.text().splitlines()[0]
        facts["source"] = board.ingest.input
    parts = [_facts(facts)]
    if board.ingest is not None and (board.ingest.left_out or board.ingest.incomplete or board.ingest.notes):
        parts.append(_details("What the ingest says", board.ingest.text()))
    for index, method in enumerate(board.methods):
        run = method.run
        config = run["config"]
        versions = ", ".join(f"{name} {value}" for name, value in run.get("versions", {}).items())
        parts.append(f'<h3><i class="swatch" style="background:{colour_of(index)}"></i>{escaped(method.name)}</h3>')
        parts.append(
            _facts(
                {
                    "model": f"{run['model']} (digest {run['model_digest']})",
                    "settings": f"{config['steps']} steps, seed {config['seed']}, config digest {run['config_digest']}",
                    "words and prompts": _habits(method),
                    "device": f"{config['device']}, {config['dtype']}, batches of {run['batch_size']}, {run['threads']} threads",
                    "rows": f"{run['rows']} in {run['seconds']:.0f} s: {status_text(run['counts'])}",
                    "version": f"vimaedit {run['version']}; {versions}",
                }
            )
        )
        parts.append(_details("Settings of the run", json.dumps(config, indent=1)))
        parts.append(_details("Settings of the scores", json.dumps(method.scores["settings"], indent=1)))
    return "".join(parts)


def warning_list(texts: Sequence[str]) -> str:
    """Return what a reader must know before the numbers."""
    return f'<ul class="warnings">{"".join(f"<li>{escaped(text)}</li>" for text in texts)}</ul>' if texts else ""


def method_cell(name: str, index: int) -> str:
    """Return a table's first cell: a method's name with its colour."""
    return html_cell(f'<i class="swatch" style="background:{colour_of(index)}"></i>{escaped(name)}')


def title(metric: Metric) -> str:
    """Return a column's title with its unit and an arrow to the better side."""
    arrow = {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]
    return metric.heading + arrow


def status_text(counts: Mapping[str, int]) -> str:
    """Say how many rows there are, and how many are not `ok`."""
    total = sum(counts.values())
    others = ", ".join(f"{count} {status}" for status, count in counts.items() if count and status != "ok")
    return f"{total} ({others})" if others else str(total)


def _summary_notes(board: Board) -> str:
    notes = [
        "Means with 95 % bootstrap intervals under them; n says of how many records where some have no finite value. "
        "Bold: the best mean among the methods of this page."
    ]
    if board.is_piebench:
        notes += ["Published figures, in grey, hold under their own conditions:", *CONDITIONS]
        settings = board.methods[0].scores["settings"]
        jpeg = settings.get("jpeg_quality")
        clip, dino = (settings.get(name) or "none" for name in ("scoring_clip", "dino"))
        models = dict.fromkeys(method.run["model"] for method in board.methods)
        here = f"through JPEG of quality {jpeg}" if jpeg else "lossless (jpeg_quality=75 makes background figures comparable)"
        notes.append(
            f"Here: {board.records} records of {_form(board)}, model {', '.join(models)}, results scored {here}; "
            f"CLIP {clip} (published: ViT-L/14), DINO {dino} (ViT-B/8)."
        )
    return "".join(_note(text) for text in notes)


def _form(board: Board) -> str:
    assert board.ingest is not None
    return "PIE-Bench's form" if board.ingest.benchmark == "PIE-Bench" else f"{board.ingest.benchmark}, with prompts of its own"


def _mean_cell(board: Board, method: MethodBoard, name: str, category: str | None = None) -> str:
    metric, found = METRICS[name], method.mean(name, category)
    if found is None:
        return html_cell(NOTHING)
    values = [each["mean"] for other in board.methods if (each := other.mean(name, category)) is not None]
    best = metric.higher_is_better is not None and len(board.methods) > 1
    best = best and found["mean"] == (max(values) if metric.higher_is_better else min(values))
    left_out = sum(found.get(kind) or 0 for kind in ("nan", "infinite", "missing"))
    interval = "" if found["low"] is None else f"{metric.shown(found['low'])} … {metric.shown(found['high'])}"
    small = "<br>".join(text for text in (interval, f"n = {found['count']}" if left_out else "") if text)
    return html_cell(f"{metric.shown(found['mean'])}<small>{small}</small>", "best" if best else "")


def _difference_cell(metric: Metric, found: Mapping[str, Any] | None) -> str:
    if not found or found["value"] is None:
        return html_cell(NOTHING)
    sure = found["low"] > 0 or found["high"] < 0
    interval = f"{metric.shown(found['low'])} … {metric.shown(found['high'])}"
    return html_cell(f"{metric.shown(found['value'], '+')}<small>{interval}</small>", "best" if sure else "")


def _habits(method: MethodBoard) -> str:
    """Say how words and prompts were read, and how often it mattered."""
    config = method.run["config"]
    missing, long = (method.warnings.get(kind, 0) for kind in ("blend_phrase_not_found", "prompt_truncated"))
    return (
        f"blend={config['blend']}: {method.without_words} edits without words, {method.ungrounded} whose words gave no mask; "
        f"missing_blend={config['missing_blend']}: phrases not found in {missing} edits; "
        f"long_prompt={config['long_prompt']}: {long} edits with a prompt too long"
    )


def _seconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _facts(facts: Mapping[str, str]) -> str:
    rows = (html_row([html_cell(escaped(name)), html_cell(escaped(value))]) for name, value in facts.items())
    return html_table((), rows, "facts")


def _details(heading: str, text: str) -> str:
    return f"<details><summary>{escaped(heading)}</summary><pre>{escaped(text)}</pre></details>"


def _note(text: str) -> str:
    return f'<p class="note">{escaped(text)}</p>'
