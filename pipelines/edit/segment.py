"""The stage before editing with grounding=segmenter: an actor that looks for what the requests of a unit are about to change.

A mask depends on its picture and its words alone: a unit that is read again, by whichever actor, gets the same ones.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from pipelines.cluster.logs import about, fields, start_worker
from pipelines.cluster.place import Placement
from pipelines.cluster.weights import local_segmenter
from pipelines.edit.blocks import from_block, to_block
from pipelines.edit.deaths import Deaths, Suspects, request_key, starting, this_worker
from pipelines.output.context import RunContext
from pipelines.output.plan import Unit
from pipelines.records.row import Row
from pipelines.store.masking import mask_urls
from pipelines.store.patience import DEATHS_ALONE
from vimaedit.engine.failures import describe, free_memory
from vimaedit.errors import RequestError, shown
from vimaedit.types import Status

logger = logging.getLogger(__name__)


def segmented(read: Dataset, context: RunContext, placement: Placement, num_units: int, ledger: Any) -> Dataset:
    """Put the stage behind reading. `ledger`: one of its own, so that a process that dies here is counted here."""
    return read.map_batches(
        SegmentActor,
        fn_constructor_args=(context, ledger),
        batch_size=1,  # a block of one row is one unit
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(placement.stage_actors, num_units), max_tasks_in_flight_per_actor=2),
        num_cpus=placement.stage_cpus,
        num_gpus=placement.stage_gpus or None,
    )


class SegmentActor:
    """Hosts one segmenter; called by Ray Data with the block of one unit."""

    def __init__(self, context: RunContext, ledger: Any = None) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the editing actors
        start_worker(*context.log_names)
        self.ledger = ledger
        with nullcontext() if ledger is None else starting(ledger):
            import torch

            from vimaedit.engine.segmenter import Segmenter

            torch.set_num_threads(context.threads)
            self.segmenter = Segmenter(local_segmenter(context.job))

    def __call__(self, block: pa.Table) -> pa.Table:
        (unit_rows,) = from_block(block)
        unit, started = unit_rows.unit, time.perf_counter()
        with about(unit.id, unit_rows.file.path):
            self.fill(unit, unit_rows.rows)
            num_masks = sum(row.request is not None and row.request.given_mask is not None for row in unit_rows.rows)
            told = fields("unit_segmented", rows=len(unit_rows.rows), masks=num_masks, seconds=time.perf_counter() - started)
            logger.info("unit segmented", extra=told)
        return to_block(unit_rows)

    def fill(self, unit: Unit, rows: Sequence[Row]) -> None:
        """Give the requests of a unit their masks, in place; what cannot be looked at is stopped, and costs no neighbour."""
        suspects: Suspects = {} if self.ledger is None else ray.get(self.ledger.enter.remote(unit.id))[0]
        for row in rows:
            if row.status is not None or row.request is None:
                continue
            deaths = suspects.get(request_key(unit, row), Deaths())
            if deaths.alone >= DEATHS_ALONE:
                text = f"the segmenter's process died {deaths.alone} times while it looked at this request ({deaths.cause})"
                row.attempts += deaths.alone
                row.stop(Status.QUARANTINED, "segment", "process_died", f"record {shown(row.id)}: {text}")
                continue
            if self.ledger is not None:
                ray.get(self.ledger.begin.remote(unit.id, [request_key(unit, row)], this_worker()))
            self._fill(row)
        if self.ledger is not None:
            ray.get(self.ledger.end.remote(unit.id))

    def _fill(self, row: Row) -> None:
        assert row.request is not None
        try:
            mask, warnings = self.segmenter.find(row.request.image, row.request)
        except RequestError as error:
            row.reject("segment", error)
        except Exception as error:  # a network's, in whatever way; the row's own
            failure = describe(error)
            if failure.out_of_memory:
                free_memory()
            message = f"record {shown(row.id)}: {failure.type}: {failure.text}"
            row.stop(Status.FAILED, "segment", failure.type, message)
            logger.warning("%s", mask_urls(message), extra=fields("row_stopped", [row.log_name], stage="segment"))
        else:
            row.request = dataclasses.replace(row.request, given_mask=mask)
            row.warnings += warnings
