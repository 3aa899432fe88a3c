"""Metrics that ride along in an editing run: what `jobs.score` would say of its output, measured where the edit is made.

As all metrics of a run they are measured on the canvas, before pasting: with `frame=original` a later scoring sees the whole picture instead.
They share the editor's process: the device is its own, and a pool of further actors could wait for CPUs that the editors hold.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.output.context import RunContext
from pipelines.records.row import Row
from pipelines.score.networks import Measurer, MetricNetworks
from pipelines.score.read import read_references
from pipelines.store.masking import mask_urls
from vimaedit.decoding import decode_image
from vimaedit.errors import RequestError, shown
from vimaedit.images import encode_image
from vimaedit.metrics.names import columns_of
from vimaedit.metrics.samples import EditSample
from vimaedit.types import Status

logger = logging.getLogger(__name__)

REFERENCE_COLUMNS = ("reference_mask", "reference_image", "target_determined")


def add_references(rows: Sequence[Row], passed: pa.Table) -> None:
    """Give every row that is to be edited the reference columns of its record, as they are passed through."""
    columns = {name: passed.column(name) for name in REFERENCE_COLUMNS if name in passed.column_names}
    for position, row in enumerate(rows):
        if row.status is None:
            row.references = {name: _value(column, position, name) for name, column in columns.items()}


def _value(column: pa.ChunkedArray, position: int, name: str) -> Any:
    try:
        return column[position].as_py()
    except Exception as error:  # whatever a value does, it may not end the run
        got = f"a value of type {column.type} that cannot be read ({type(error).__name__}: {error})"
        return RequestError("unreadable_value", field=name, got=got, allowed="a picture")


class RidingMetrics:
    """Measures the edits of finished rows."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.columns = columns_of(context.job.riding)
        self.measurer = Measurer(
            MetricNetworks.of(context.job, context.job.riding),
            batch_size=context.batch_size,
            threads=context.threads,
            use_gpu=context.job.device == "cuda",
            absent=context.absent_metrics,
        )

    def __call__(self, rows: Sequence[Row]) -> None:
        """Measure the rows whose edit is done. What cannot be measured is null, and a warning of the row says why."""
        done = [row for row in rows if row.result is not None and row.status == Status.OK and row.result.image is not None]
        ready = [(row, sample) for row in done if (sample := self._sample(row)) is not None]
        try:
            self._measure(ready)
        except Exception as error:
            logger.warning("metrics of %d edits: %s; each is measured alone now", len(ready), mask_urls(str(error)))
            for pair in ready:
                try:
                    self._measure([pair])
                except Exception as again:
                    _warn(pair[0], again)
        for row in rows:
            row.references = None  # nothing later reads them

    def _measure(self, ready: Sequence[tuple[Row, EditSample]]) -> None:
        for (row, _), values in zip(ready, self.measurer([sample for _, sample in ready]), strict=True):
            row.measured = {name: _number(values[name]) for name in self.columns}

    def _sample(self, row: Row) -> EditSample | None:
        """Give a row's edit as it was made, on the canvas, coded as it will be; None where its references cannot be read."""
        job, picture = self.context.job, row.picture
        assert picture is not None and row.result is not None and row.result.image is not None
        edited = row.result.image
        if job.picture_coding == "jpeg":  # the other formats lose nothing
            edited = decode_image(encode_image(edited, job.picture_coding), min_side_px=1, max_pixels=edited.size)
        try:
            references = read_references(
                _readable(row.references or {}),
                self.context.reference_rules(row.input_file),
                job.max_pixels,
                picture.size,
                picture.orientation,
                picture.crop_box,
                edited.shape[:2],
            )
        except (RequestError, OSError) as error:
            _warn(row, error)
            return None
        return EditSample(
            source=picture.image,
            edited=edited,
            source_prompt=row.source_prompt or "",
            target_prompt=row.target_prompt or "",
            reference_mask=references.mask,
            target=references.target,
            framed=references.framed,
        )


def _readable(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a record.

    Raises: RequestError where a value of it could not be converted.
    """
    for value in record.values():
        if isinstance(value, RequestError):
            raise value
    return record


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _warn(row: Row, error: Exception) -> None:
    logger.warning("record %s: %s", shown(row.id), mask_urls(f"{type(error).__name__}: {error}"))
    row.warnings.append(mask_urls(f"unmeasured: {error}"))
