"""Finished requests -> the output's columns: the frame, coded pictures and masks, metrics."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import pyarrow as pa

from pipelines.cluster.logs import fields
from pipelines.edit.blocks import UnitRows
from pipelines.output.context import RunContext
from pipelines.records.row import Row
from pipelines.records.schema import OUTPUT_FIELDS
from pipelines.store.masking import cut_quotes, mask_urls
from vimaedit.decoding import decode_image
from vimaedit.errors import RequestError, shown
from vimaedit.images import encode_image, encode_mask, paste_back, paste_mask
from vimaedit.marks import COMPOSITE, GENERATED, make_mark
from vimaedit.metrics.background import background_metrics
from vimaedit.types import BoolArray, Status, UInt8Array

logger = logging.getLogger(__name__)

PICTURE_COLUMNS = ("image", "edited_image", "edit_mask", "critical_mask", "metrics")


def encode_unit(context: RunContext, unit_rows: UnitRows) -> pa.Table:
    """Build the output table of one unit: the contract's columns, then the passed-through ones."""
    values = [encode_row(context, unit_rows.unit.id, row) for row in unit_rows.rows]
    kinds = [context.schema.field(field.name) for field in OUTPUT_FIELDS]
    columns = [pa.array([value[field.name] for value in values], field.type) for field in kinds]
    passed = [unit_rows.passed.column(name) for name in context.columns.passed]
    return pa.table([*columns, *passed], schema=context.schema)


def encode_row(context: RunContext, unit_id: str, row: Row) -> dict[str, Any]:
    """Give one row's values of the contract's columns."""
    job = context.job
    try:
        pictures = _pictures(context, row)
    except Exception as error:  # becomes the row's own: no picture may end the run
        pictures = dict.fromkeys(PICTURE_COLUMNS)
        status, kind = Status.FAILED, type(error).__name__
        if isinstance(error, RequestError):
            status, kind = Status.REJECTED, error.code
        else:
            told = fields("row_stopped", [row.log_name], stage="encode")
            logger.warning("record %s: %s: %s", shown(row.id), kind, mask_urls(str(error)), extra=told)
        row.stop(status, "encode", kind, f"record {shown(row.id)}: {error}")
    result, picture = row.result, row.picture
    assert result is not None
    # What words were used is known only of a finished edit.
    ok = result.status == Status.OK
    size = None if picture is None else picture.size
    box = None if picture is None else picture.crop_box
    if job.frame == "original" and size is not None:
        box = (0, 0, *size)
    return {
        "id": row.id,
        "edit_index": row.edit_index,
        "input_file": row.input_file,
        "input_row": row.input_row,
        "source_prompt": row.source_prompt,
        "target_prompt": row.target_prompt,
        "blend_words_used": [dataclasses.asdict(phrase) for phrase in result.blend_used] if ok else None,
        **pictures,
        "mask_source": result.mask_source if ok else None,
        "grounded": result.grounded if ok else None,
        "original_size": None if size is None else {"width": size[0], "height": size[1]},
        "crop_box": None if box is None else dict(zip(("left", "top", "right", "bottom"), box, strict=True)),
        "status": str(result.status),
        "error_stage": result.error_stage,
        "error_type": result.error_type,
        "error_message": None if result.message is None else mask_urls(cut_quotes(result.message)),
        # One that failed before it came to an editor was tried too.
        "attempts": max(1, row.attempts) if result.status == Status.FAILED else row.attempts,
        "warnings": [*row.warnings, *_warnings(context, row)],
        "seed": row.seed,
        "method": job.method,
        "steps": job.steps,
        "config_digest": context.config_digest,
        "model": mask_urls(job.model),
        "family": context.facts.family,
        "model_digest": context.model_digest,
        "version": context.version,
        "unit_id": unit_id,
        "seconds": result.seconds,
    }


def _warnings(context: RunContext, row: Row) -> list[str]:
    if row.status == Status.OK and context.job.keep_source == "path" and row.image_path is None:
        return ["source_not_kept: keep_source=path, but the record's picture has no path, so image is null"]
    return []


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Framed:
    """A row's pictures and masks in the output's frame. Shapes: (height, width, 3) uint8, masks (height, width) bool."""

    source: UInt8Array | None
    edited: UInt8Array | None
    edit_mask: BoolArray | None
    critical_mask: BoolArray | None


def _frame(context: RunContext, row: Row) -> _Framed:
    """Bring source, edit and masks to the output's frame."""
    job, picture, result = context.job, row.picture, row.result
    assert result is not None
    source = None if picture is None else picture.image
    edited, edit_mask, critical_mask = result.image, result.edit_mask, result.critical_mask
    if row.coded is not None and picture is not None:
        source = decode_image(row.coded, min_side_px=job.min_side_px, max_pixels=job.max_pixels)
        edited = None if edited is None else paste_back(source, edited, edit_mask, picture.crop_box, job.paste)
        edit_mask = None if edit_mask is None else paste_mask(edit_mask, picture.size, picture.crop_box)
        critical_mask = None if critical_mask is None else paste_mask(critical_mask, picture.size, picture.crop_box)
    return _Framed(source=source, edited=edited, edit_mask=edit_mask, critical_mask=critical_mask)


def _pictures(context: RunContext, row: Row) -> dict[str, Any]:
    """Code the pictures in the output's frame; the edit is measured as it was made, on the canvas."""
    job, framed = context.job, _frame(context, row)
    source, edited, edit_mask, critical_mask = framed.source, framed.edited, framed.edit_mask, framed.critical_mask
    ok = row.status == Status.OK and source is not None and edited is not None
    is_generated = row.picture is not None and row.picture.is_generated
    image: dict[str, Any] | None = None
    if source is not None and job.keep_source == "true":
        mark = make_mark(GENERATED) if is_generated else None
        image = {"bytes": encode_image(source, job.picture_coding, mark), "path": None}
    elif source is not None and job.keep_source == "path" and row.image_path is not None:
        image = {"bytes": None, "path": row.image_path}
    return {
        "image": image,
        "edited_image": {"bytes": encode_image(edited, job.picture_coding, _mark(context, row, is_generated)), "path": None}
        if ok and edited is not None
        else None,
        "edit_mask": {"bytes": encode_mask(edit_mask), "path": None} if ok and edit_mask is not None else None,
        "critical_mask": {"bytes": encode_mask(critical_mask), "path": None} if ok and critical_mask is not None else None,
        "metrics": {**_metrics(row), **row.measured} if ok else None,
    }


def _mark(context: RunContext, row: Row, is_generated: bool) -> bytes:
    """Say of an edited picture how it came about. Nothing in it depends on where or when it was edited."""
    return make_mark(
        GENERATED if is_generated else COMPOSITE,
        run=context.config_digest,
        row=f"{row.input_file}#{row.input_row}/{row.edit_index}",
        model=context.model_digest,
    )


def _metrics(row: Row) -> dict[str, Any]:
    result, picture = row.result, row.picture
    assert result is not None and result.image is not None and picture is not None
    values = dataclasses.asdict(background_metrics(picture.image, result.image, result.edit_mask))
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}
