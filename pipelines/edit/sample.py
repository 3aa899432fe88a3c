"""A first batch, edited to know how long a run takes and how large its output gets."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from pipelines.cluster.place import Placement
from pipelines.cluster.session import get
from pipelines.cluster.workers import on_worker
from pipelines.edit.actor import EditActor
from pipelines.edit.blocks import UnitRows
from pipelines.edit.read import read_unit
from pipelines.edit.write import encode_unit
from pipelines.output.context import RunContext
from pipelines.output.parts import part_bytes
from pipelines.output.plan import Unit
from pipelines.records.scan import InputFile
from pipelines.store.masking import mask_urls
from pipelines.store.patience import SAMPLE_RETRIES

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A measured first batch: `rows` edited in `seconds` after a warm-up, and the bytes of their part."""

    rows: int
    seconds: float
    bytes: int

    @property
    def row_seconds(self) -> float:
        return self.seconds / self.rows

    @property
    def row_bytes(self) -> float:
        return self.bytes / self.rows


def measure(context: RunContext, files: Sequence[InputFile], unit: Unit, placement: Placement) -> Sample | None:
    """Edit the unit's requests on a worker, write nothing, and time it; None where none of them can be edited.

    A request that kills its process is the run's to find; here it only makes the unit unfit for a measurement.
    """
    measured = on_worker(_measure, placement, max_retries=SAMPLE_RETRIES).remote(context, files, unit)
    try:
        sample: Sample | None = get(measured)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        logger.warning("unit %s cannot be measured: %s", unit.id, mask_urls(str(error)).splitlines()[0])
        return None
    return sample


def _measure(context: RunContext, files: Sequence[InputFile], unit: Unit) -> Sample | None:
    actor = EditActor(context)
    read = read_unit(context, files, unit)
    if all(row.status is not None for row in read.rows):
        return None
    actor.edit_rows(unit, read.rows)
    again: UnitRows = read_unit(context, files, unit)
    started = time.perf_counter()
    actor.edit_rows(unit, again.rows)
    seconds = time.perf_counter() - started
    return Sample(rows=len(again.rows), seconds=seconds, bytes=len(part_bytes(context, unit.id, encode_unit(context, again))))
