"""A made-up board for tests of the report: drawn scenes, and edits of known quality.

`python -m tests.report_board FILE [RECORDS] [METHODS]` writes a page.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.evaluate.report.data import Board, MethodBoard, Result, Sample
from pipelines.evaluate.report.page import render
from pipelines.ingest.ingest import Defect, IngestSummary
from pipelines.output.thumbnails import code_masks, code_picture
from vimaedit.metrics.names import METRICS, SEVEN
from vimaedit.scenes.benchmark import benchmark_seed, spread_categories
from vimaedit.scenes.edits import CATEGORIES, edit_mask, make_edit
from vimaedit.scenes.render import render_scene

SIZE = 96
METHODS = ("vimaedit", "p2p", "masactrl", "pnp")
MEASURED = (*SEVEN, "mask_iou", "changed_fraction", "target_psnr", "scene_edited_right")
TYPICAL = (0.02, 26.0, 0.06, 0.003, 0.84, 25.0, 22.0, 0.6, 0.3, 24.0, 0.5)
HABITS = {"blend": "given", "missing_blend": "ignore", "long_prompt": "truncate"}
CONFIG = {**HABITS, "steps": 50, "seed": 0, "device": "cpu", "dtype": "float32", "model": "random"}


def make_board(records: int = 12, names: Sequence[str] = METHODS[:1], *, size: int = SIZE, piebench: bool = True) -> Board:
    """Make a board whose values follow from the record's number, so that tests know every order.

    Record 3 was rejected with the last method; record 5 has no background (NaN) and an infinite PSNR at record 7.
    """
    samples = [_sample(index, category, names, size) for index, category in enumerate(spread_categories(records, CATEGORIES))]
    methods = tuple(_method(name, number, samples) for number, name in enumerate(names))
    defect = Defect(entry="000000000007", place="mapping_file.json, entry 7", problem="image: got 0 bytes; allowed: a picture")
    ingest = IngestSummary(
        benchmark="PIE-Bench", input="/data/pie", source_digest="d", entries=records + 1, records=records, left_out=(defect,)
    )
    return Board(
        benchmark="/data/records.parquet",
        ingest=ingest if piebench else None,
        records=records,
        methods=methods,
        samples=tuple(samples),
    )


def value_of(metric: str, record: int, method: int) -> float:
    """Return the made-up value of a metric: no two records alike."""
    if metric == "background_psnr" and record == 7:
        return math.inf
    if metric.startswith("background") and record == 5:
        return math.nan
    typical = TYPICAL[MEASURED.index(metric)]
    return typical * (1 + 0.1 * method + 0.3 * math.sin(1 + 7.0 * record + METRICS_ORDER[metric]))


METRICS_ORDER = {name: index for index, name in enumerate(METRICS)}


def _sample(index: int, category: str, names: Sequence[str], size: int) -> Sample:
    edit = make_edit(benchmark_seed("test", 5, index), category)
    source, target, mask = render_scene(edit.source, size), render_scene(edit.target, size), edit_mask(edit, size)
    sample = Sample(
        id=f"{index:012d}",
        category=f"{CATEGORIES.index(category)}_{category}",
        instruction=edit.instruction,
        source_prompt=edit.source_prompt,
        target_prompt=edit.target_prompt,
        source=code_picture(source, size),
        reference=code_masks(None, mask, size),
        target=code_picture(target, size),
    )
    for number, name in enumerate(names):
        noise = np.random.default_rng(index * 10 + number).normal(0, 6 + 10 * number, source.shape)
        edited = np.clip(np.where(mask[..., None], target, source) + noise, 0, 255).astype(np.uint8)
        own = np.roll(mask, 3 + 4 * number, axis=(0, 1))
        rejected = index == 3 and number == len(names) - 1
        sample.results[name] = Result(
            status="rejected" if rejected else "ok",
            message="record '3': blend_words: got <b>7</b>; allowed: text" if rejected else None,
            warnings=("prompt_truncated: 80 tokens, 77 are read",) if index == 2 else (),
            metrics={} if rejected else {metric: value_of(metric, index, number) for metric in MEASURED},
            mask=None if rejected else code_masks(own, mask, size),
            edited=None if rejected else code_picture(edited, size),
        )
    return sample


def _method(name: str, number: int, samples: Sequence[Sample]) -> MethodBoard:
    results = [sample.results[name] for sample in samples]
    statuses = {status: sum(result.status == status for result in results) for status in ("ok", "rejected")}
    categories = sorted({sample.category or "" for sample in samples})
    scores: dict[str, Any] = {
        "records": len(samples),
        "statuses": statuses,
        "seconds_per_edit": 2.5,
        "absent": {"target_lpips": "lpips: no weights were named"},
        "overall": {metric: mean_of([result.metrics.get(metric) for result in results]) for metric in MEASURED},
        "categories": {
            category: {
                "records": sum(sample.category == category for sample in samples),
                "metrics": {
                    metric: mean_of([each.results[name].metrics.get(metric) for each in samples if each.category == category])
                    for metric in MEASURED
                },
            }
            for category in categories
        },
        "compared": None,
        "settings": {"jpeg_quality": None, "scoring_clip": "/models/clip", "dino": None},
        "warnings": [],
    }
    if number:
        differences = {metric: {"value": 0.1, "low": -0.2 + 0.1 * number, "high": 0.5, "pairs": 11} for metric in MEASURED}
        scores["compared"] = {"against": METHODS[0], "metrics": differences}
    run = {
        "config": {**CONFIG, "method": name},
        "config_digest": "c" * 32,
        "model": "random",
        "model_digest": "m" * 32,
        "versions": {"torch": "2.13.0"},
        "version": "0.1.0",
        "batch_size": 2,
        "threads": 1,
        "rows": len(samples),
        "seconds": 2.5 * len(samples),
        "counts": statuses,
    }
    common = ("random_weights: model=random has random weights; its pictures mean nothing",)
    warnings = {"random_weights": len(samples), "prompt_truncated": 1}
    return MethodBoard(
        name=name,
        scores=scores,
        run=run,
        warnings=warnings,
        common_warnings=common,
        without_words=4,
        ungrounded=1,
    )


def mean_of(values: Sequence[float | None]) -> dict[str, Any]:
    """Return an aggregate in the form of the scores; the interval is that of the values, for want of a bootstrap."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return {
        "mean": float(np.mean(finite)) if finite else None,
        "low": min(finite, default=None),
        "high": max(finite, default=None),
        "count": len(finite),
        "nan": sum(value is not None and math.isnan(value) for value in values),
        "infinite": sum(value is not None and math.isinf(value) for value in values),
        "missing": sum(value is None for value in values),
    }


if __name__ == "__main__":
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 12
    chosen = METHODS[: int(sys.argv[3])] if len(sys.argv) > 3 else METHODS[:1]
    Path(sys.argv[1]).write_text(render(make_board(count, chosen)), encoding="utf-8")
