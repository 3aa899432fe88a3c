"""What every worker of a run must know, and the form in which requests travel between the stages."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.output.config import EditJobConfig
from pipelines.output.plan import Unit
from pipelines.records.scan import InputFile
from pipelines.records.schema import ColumnMap
from pipelines.store.fetch import ReferenceRules
from vimaedit.images import CanvasSpec
from vimaedit.models.files import ModelFacts
from vimaedit.types import BlendPhrase, BoolArray, Editor, RequestOverrides, Status, UInt8Array

MASKS = ("given_mask", "edit_mask", "critical_mask")  # of a row
MakeEditor = Callable[[EditJobConfig], Editor]  # from a job whose weights lie on this node


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """One run, settled: `job` has no `auto` left that a row's pictures depend on."""

    job: EditJobConfig
    facts: ModelFacts
    columns: ColumnMap
    schema: pa.Schema  # of the output
    input_root: str
    batch_size: int
    threads: int  # CPU threads of one actor
    config_digest: str
    model_digest: str
    plan_digest: str
    version: str
    generation: int  # of the parts that this run writes
    absent_metrics: tuple[str, ...] = ()  # of those that ride along: whose networks cannot be had
    attempt: str = ""  # names the driver at work, for logs
    retry_statuses: tuple[str, ...] = ()  # of rows that are done again where a unit has a part of a lower generation
    make_editor: MakeEditor | None = None  # what edits in an actor; None: the job's method on its model

    @property
    def canvas(self) -> CanvasSpec:
        size = self.job.canvas.size or self.facts.canvas_size
        return CanvasSpec(fit=self.job.canvas.fit, size=size, granularity=self.facts.granularity)

    @property
    def reference_rules(self) -> ReferenceRules:
        return ReferenceRules(
            root=self.job.image_root or self.input_root, allow_http=self.job.allow_http, http_hosts=self.job.http_hosts
        )


@dataclass(kw_only=True, eq=False)
class Row:
    """One request on its way to one output row. A `status` of None: nothing went wrong so far.

    Shapes: `canvas`, `edited` (height, width, 3) and `clip_image` (side, side, 3) uint8; masks (height, width) bool, all in the
    canvas frame. `original_size` is (width, height), `crop_box` (left, top, right, bottom) in px of the original.
    """

    id: str
    edit_index: int
    input_file: str
    input_row: int
    source_prompt: str | None = None
    target_prompt: str | None = None
    blend: tuple[BlendPhrase, ...] = ()
    seed: int | None = None  # None until the editing actor derives it from the run's seed and the id
    overrides: RequestOverrides = RequestOverrides()
    given_mask: BoolArray | None = None
    canvas: UInt8Array | None = None
    clip_image: UInt8Array | None = None
    original: bytes | None = None  # the coded picture, carried only for frame=original
    image_path: str | None = None
    original_size: tuple[int, int] | None = None
    crop_box: tuple[int, int, int, int] | None = None
    edited: UInt8Array | None = None
    edit_mask: BoolArray | None = None
    critical_mask: BoolArray | None = None
    grounded: bool | None = None
    status: Status | None = None
    error_stage: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    attempts: int = 0
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    references: Mapping[str, Any] | None = None  # the record's reference columns, only where metrics ride along
    measured: Mapping[str, float | None] = field(default_factory=dict)  # by the metrics that ride along
    is_kept: bool = False  # the row that stands in the output stays as it is; `status` is that row's

    def __getstate__(self) -> dict[str, Any]:
        """Let masks travel as bits, an eighth of their size."""
        masks = {name: _pack(mask) for name in MASKS if (mask := getattr(self, name)) is not None}
        return {**self.__dict__, **masks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        masks = {name: _unpack(*state[name]) for name in MASKS if state[name] is not None}
        self.__dict__.update({**state, **masks})

    def stop(self, status: Status, stage: str, kind: str, message: str) -> None:
        """Settle that this request gets no edit, and why."""
        self.status, self.error_stage, self.error_type, self.error_message = status, stage, kind, message


def _pack(mask: BoolArray) -> tuple[UInt8Array, tuple[int, ...]]:
    return np.packbits(mask), mask.shape


def _unpack(bits: UInt8Array, shape: tuple[int, ...]) -> BoolArray:
    return np.unpackbits(bits, count=math.prod(shape)).view(np.bool_).reshape(shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitRows:
    """The requests of one unit in order, and the passed-through columns (one row each)."""

    unit: Unit
    file: InputFile
    rows: Sequence[Row]
    passed: pa.Table


def to_block(unit_rows: UnitRows) -> pa.Table:
    """Pack a unit as a block of a single row, so that no engine can split, merge or re-batch it."""
    payload = pickle.dumps(unit_rows, protocol=5)
    ends = pa.py_buffer(np.array([0, len(payload)], dtype=np.int64))
    column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(payload)])  # without a copy
    return pa.table({"unit": [unit_rows.unit.id], "payload": column})


def from_block(block: pa.Table) -> list[UnitRows]:
    """Unpack the units of a block."""
    return [pickle.loads(value.as_buffer()) for value in block.column("payload")]
