"""Amounts of work for the engine, and what each takes: time, memory, rows of the UNet."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch

from tests.timing.machine import count_operations
from tests.timing.process import cpu_seconds, forget_peak, give_back_memory, peak_mb, resident_mb
from tests.timing.sides import drawn_requests, load_editor
from vimaedit.attention.routing import shared_steps
from vimaedit.config import Canvas, EditConfig
from vimaedit.engine.editor import BatchEditor
from vimaedit.models.backbone import Backbone
from vimaedit.models.conditioning import Conditioning

# What the engine saves itself, and can be made to do after all, to see what each saving brings.
THIRD_ROW = "no row for an unguided source"  # its unconditional one
ONE_BRANCH = "rows of a branch attended once before any text"
ONE_PROJECTION = "keys and values made once"
SAVINGS = (THIRD_ROW, ONE_BRANCH, ONE_PROJECTION)


@dataclass(frozen=True, kw_only=True)
class Point:
    """Work to measure: so many edits in batches of `batch`; of each picture there are `targets`. `size` in px; None: the model's.
    `without`: one of `SAVINGS`, or "" for the engine as it is; given, operations are counted."""

    edits: int
    batch: int
    steps: int
    size: int | None = None
    targets: int = 1
    source_variance: bool = True
    without: str | None = None


@dataclass(frozen=True, kw_only=True)
class PointFigures:
    """What a point took. `denoise_s`, `whole_s`: CPU seconds of the loop alone, and with encoders and decoder. `memory_mb`: the most
    held above what was held before. `rows`: how many rows the UNet was asked for. `operations`: of one batch's loop, counted where
    `without` is given."""

    denoise_s: float
    whole_s: float
    memory_mb: float
    rows: int
    operations: int | None


class _Anew(Backbone):
    """Makes keys and values in every pass."""

    def with_contexts(self, conditioning: Conditioning) -> Conditioning:
        return conditioning


def measure_points(model: str, points: list[Point], rounds: int, threads: int) -> list[list[PointFigures]]:
    """Measure all points in turn, after each has run once with one step; return the figures of every round."""
    torch.set_num_threads(threads)
    first = load_editor(model, EditConfig(blend="given"), "cpu", "float32")
    for point in points:
        measure_point(_editor(first, dataclasses.replace(point, steps=1)), point)
    operations = [None if point.without is None else _loop_operations(_editor(first, point), point) for point in points]
    return [
        [
            dataclasses.replace(measure_point(_editor(first, point), point), operations=count)
            for point, count in zip(points, operations, strict=True)
        ]
        for _ in range(rounds)
    ]


def _editor(first: BatchEditor, point: Point) -> BatchEditor:
    """Make the editor that does a point's work; the last one made is the one that can be used."""
    config = dataclasses.replace(
        first.config,
        steps=point.steps,
        canvas=Canvas(size=point.size),
        targets_per_source=point.targets,
        source_variance=point.source_variance,
    )
    if point.without == THIRD_ROW:
        config = dataclasses.replace(config, source_guidance=1 + 1e-6)
    backbone = (_Anew if point.without == ONE_PROJECTION else Backbone)(first.backbone.networks, config)
    if point.without == ONE_BRANCH:
        for processor in backbone.networks.denoiser.attn_processors.values():
            processor.is_before_text = False
    return BatchEditor(backbone, config, first.facts)


def _loop_operations(editor: BatchEditor, point: Point) -> int:
    """Count the operations of one batch's loop."""
    edits = [editor.prepare(each) for each in drawn_requests(point.batch, editor.canvas.size, point.targets)]
    return count_operations(functools.partial(editor.run, editor.encode(edits), edits))


def measure_point(editor: BatchEditor, point: Point) -> PointFigures:
    """Do a point's work."""
    requests = drawn_requests(point.edits, editor.canvas.size, point.targets)
    give_back_memory()
    held = resident_mb()
    forget_peak()
    denoise, began = 0.0, cpu_seconds()
    for start in range(0, point.edits, point.batch):
        edits = [editor.prepare(each) for each in requests[start : start + point.batch]]
        batch = editor.encode(edits)
        before = cpu_seconds()
        final = editor.run(batch, edits)
        denoise += cpu_seconds() - before
        editor.finish(edits, batch, final)
    return PointFigures(
        denoise_s=denoise,
        whole_s=cpu_seconds() - began,
        memory_mb=peak_mb() - held,
        rows=count_rows(editor.config, point),
        operations=None,
    )


def count_rows(config: EditConfig, point: Point) -> int:
    """Count the rows of all steps: three for each edit, four with a guided source, less what edits of one picture share."""
    shared = shared_steps(config, point.steps) if point.targets > 1 else 0
    own = 4 if point.without == THIRD_ROW else 3
    return point.edits * own * (point.steps - shared) + (point.edits * 2 + point.edits // point.targets) * shared
