"""The report of a synthesis: funnel, histograms of the scores, and examples of what was kept and of what each filter took out."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from pipelines.output.thumbnails import code_masks, code_picture
from pipelines.store.location import locate, put_atomic
from pipelines.store.masking import cut
from pipelines.store.parquet import take_rows
from pipelines.synthesis.card import Account, category_table, cost_table, funnel_table, meanings
from pipelines.synthesis.columns import SCORES
from pipelines.synthesis.filters import KEPT, outcomes
from pipelines.synthesis.selection import BINS, Selected, Selecting
from pipelines.tables import escaped, html_cell, html_row, html_table
from vimaedit.decoding import decode_image
from vimaedit.mask_decoding import decode_mask

EXAMPLES = 8  # of each outcome
THUMBNAIL_PX = 160
TEXT_CHARACTERS = 200
COLUMNS = ("image", "edited_image", "edit_mask", "instruction", "source_prompt", "target_prompt")
PLOT = (320, 120)  # px
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;max-width:1100px;padding:16px;color:#18181b;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #e4e4e7}h3{font-size:1rem;margin-bottom:.3rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:3px 10px;text-align:right;border-bottom:1px solid #e4e4e7;white-space:nowrap}
td:first-child,th:first-child,.left{text-align:left}
.bar{display:inline-block;height:11px;background:#1d4ed8;vertical-align:middle}
.plots,.examples{display:flex;flex-wrap:wrap;gap:14px}figure{margin:0;max-width:100%}figcaption{font-size:.85rem;color:#52525b}
.example{width:500px;max-width:100%;border:1px solid #e4e4e7;padding:8px;box-sizing:border-box}
.example img{width:calc(33% - 4px);max-width:160px}.example p{margin:.3rem 0;font-size:.85rem;overflow-wrap:anywhere}
.warning{color:#9a3412}.all{fill:#d4d4d8}.kept{fill:#1d4ed8}text{font:11px system-ui,sans-serif;fill:#52525b}
"""


def write_report(account: Account) -> None:
    """Write `<output>/report.html`, one file that needs nothing else. Pictures are read and reduced on a worker."""
    output = account.selecting.output
    wanted = [each for rows in account.selected.examples.values() for each in rows]
    pictures = ray.get(ray.remote(_examples).remote(output, wanted)) if wanted else {}
    put_atomic(locate(output) / "report.html", render(account, pictures).encode())


def render(account: Account, pictures: Mapping[tuple[str, int], Mapping[str, Any]]) -> str:
    """Build the page. `pictures`: place of a candidate -> its texts and thumbnails."""
    selecting, selected, truth = account.selecting, account.selected, account.truth
    config = selecting.config
    parts = [f"<h1>{escaped(_title(selected))}</h1>"]
    parts += [f'<p class="warning">{escaped(warning)}</p>' for warning in account.warnings]
    parts += [
        "<h2>Funnel</h2>",
        _funnel(selecting, selected),
        "<h2>Kinds of edits</h2>",
        category_table(selected).html(),
        "<h2>Cost of the edits</h2>",
        cost_table(selected).html(),
    ]
    if truth is not None:
        parts += [f"<h2>{escaped(truth.title)}</h2>", truth.html(), f"<p>{escaped(truth.note)}</p>"]
    plots = [_histogram(score, *counts) for score, counts in selected.histograms.items() if sum(counts[0])]
    parts += [
        "<h2>Scores</h2>",
        "<p>Grey: all edited candidates. Blue: those that were kept. Each scaled to its own highest bar.</p>",
        f'<div class="plots">{"".join(plots)}</div>',
        "<h2>Examples</h2>",
    ]
    told = meanings(selecting.bounds)
    for outcome in reversed(outcomes(config.filters, selecting.bounds)):
        if rows := selected.examples.get(outcome):
            shown = [_example(row, pictures[row["part"], row["part_row"]]) for row in rows]
            parts.append(f"<h3>{escaped(outcome)}: {escaped(told[outcome])}</h3>")
            parts.append(f'<div class="examples">{"".join(shown)}</div>')
    parts += ["<h2>Provenance</h2>", account.facts().html()]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Synthesis</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def _title(selected: Selected) -> str:
    return f"{selected.counts[KEPT]} records of {sum(selected.counts.values())} candidates"


def _funnel(selecting: Selecting, selected: Selected) -> str:
    table = funnel_table(selecting.config, selecting.bounds, selected)
    total = max(1, sum(selected.counts.values()))
    rows = []
    for row in table.rows:
        bar = f'<span class="bar" style="width:{200 * int(row[3]) / total:.0f}px"></span>'
        rows.append(html_row([*(html_cell(escaped(cell)) for cell in row), html_cell(bar, "left")]))
    return html_table((*table.columns, ""), rows)


def _histogram(score: str, every: Sequence[int], kept: Sequence[int]) -> str:
    """Draw one score's histogram: all candidates behind, the kept ones in front."""
    width, height = PLOT
    low, high = SCORES[score]
    bars = []
    for name, counts in (("all", every), ("kept", kept)):
        most = max(1, *counts)
        for index, count in enumerate(counts):
            if count:
                tall = (height - 20) * count / most
                step = width / BINS
                inset = 0.0 if name == "all" else step / 4
                bars.append(
                    f'<rect class="{name}" x="{index * step + inset:.1f}" y="{height - 16 - tall:.1f}" width="{step - 2 * inset - 0.5:.1f}" '
                    f'height="{tall:.1f}"/>'
                )
    labels = f'<text x="0" y="{height - 2}">{low:g}</text><text x="{width}" y="{height - 2}" text-anchor="end">{high:g}</text>'
    title = escaped(score)
    svg = f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{"".join(bars)}{labels}</svg>'
    return f"<figure>{svg}<figcaption>{title}: {sum(every)} candidates, {sum(kept)} kept</figcaption></figure>"


def _example(row: Mapping[str, Any], shown: Mapping[str, Any]) -> str:
    images = "".join(
        f'<img alt="{name}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
        for name, kind, data in shown["pictures"]
    )
    texts = [shown["edit_prompt"], f"{shown['original_prompt']} → {shown['edited_prompt']}", row["reason"]]
    lines = "".join(f"<p>{escaped(cut(str(text), TEXT_CHARACTERS))}</p>" for text in texts if text)
    return f'<div class="example">{images}{lines}</div>'


def _examples(output: str, wanted: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Read candidates and reduce their pictures."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for part in sorted({each["part"] for each in wanted}):
        rows = sorted({each["part_row"] for each in wanted if each["part"] == part})
        table = take_rows(locate(output) / "candidates" / "data" / part, rows, COLUMNS)
        for row, values in zip(rows, table.to_pylist(), strict=True):
            found[part, row] = _shown(values)
    return found


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    pictures = []
    for name, column in (("source", "image"), ("mask", "edit_mask"), ("edited", "edited_image")):
        value = row[column]
        if value is None:
            continue
        if name == "mask":
            pictures.append((name, "png", code_masks(decode_mask(value["bytes"]), None, THUMBNAIL_PX)))
        else:
            pictures.append((name, "webp", code_picture(decode_image(value["bytes"]), THUMBNAIL_PX)))
    return {
        "pictures": pictures,
        "edit_prompt": row["instruction"],
        "original_prompt": row["source_prompt"],
        "edited_prompt": row["target_prompt"],
    }
