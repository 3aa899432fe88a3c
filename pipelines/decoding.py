"""A record's picture and mask: fetched where the record only names them, decoded, and brought to the canvas."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.context import Row, RunContext
from pipelines.records import image_source, reject
from pipelines.references import fetch
from vimaedit.errors import RequestError
from vimaedit.images import clip_view, decode_image, decode_mask, fit_image, fit_mask
from vimaedit.types import Status, UInt8Array

logger = logging.getLogger(__name__)


def picture_source(record: Mapping[str, Any]) -> bytes | str | Exception:
    """Give a record's picture: its bytes, what names it, or why it has neither."""
    try:
        return image_source(record.get("image"), "image")
    except RequestError as error:
        return error


def fetch_picture(context: RunContext, reference: str) -> bytes | Exception:
    """Fetch a picture that a record names; what goes wrong becomes the row's: nothing a record names may end the run."""
    try:
        return fetch(reference, context.reference_rules)
    except Exception as error:
        return error


def add_pictures(context: RunContext, rows: Sequence[Row], values: Mapping[str, Any], image: bytes | Exception) -> None:
    """Decode the picture and mask of a record once for all its edits. Rows rejected before keep their reason."""
    path = values["image"].get("path") if isinstance(values.get("image"), dict) else values.get("image")
    path = path if isinstance(path, str) else None
    try:
        if isinstance(image, Exception):
            raise image
        original = decode_image(image, min_side_px=context.job.min_side_px, max_pixels=context.job.max_pixels)
    except Exception as error:
        stage = "decode" if isinstance(image, bytes) else "fetch"
        for row in rows:
            row.image_path = path
            _stop(row, stage, error)
        return
    height, width = original.shape[:2]
    fitted = fit_image(original, context.canvas)
    shared: dict[str, Any] = {"canvas": fitted.image, "crop_box": fitted.crop_box, "original_size": (width, height)}
    shared["clip_image"] = clip_view(original, context.facts.clip_side)
    shared["original"] = image if context.job.frame == "original" else None
    shared["image_path"] = path
    for row in rows:
        for name, value in shared.items():
            setattr(row, name, value)
    if context.job.grounding == "given":
        _add_mask(context, rows, values, original, fitted.crop_box)


def _add_mask(
    context: RunContext,
    rows: Sequence[Row],
    values: Mapping[str, Any],
    original: UInt8Array,
    crop_box: tuple[int, int, int, int],
) -> None:
    try:
        value = values.get("given_mask")
        if value is None:
            raise RequestError("given_mask_missing", field="given_mask", got="null", allowed="a mask, with grounding=given")
        data = image_source(value, "given_mask")
        if isinstance(data, str):
            raise RequestError(
                "wrong_type", field="given_mask", got=f"the path {data!r}", allowed="binary, or {bytes, path} with bytes"
            )
        mask = decode_mask(data, max_pixels=context.job.max_pixels)
        size = (original.shape[1], original.shape[0])
    except Exception as error:
        for row in rows:
            _stop(row, "decode", error)
        return
    for row in rows:
        assert row.canvas is not None
        row.given_mask = fit_mask(mask, size, crop_box, row.canvas.shape[:2])


def _stop(row: Row, stage: str, error: Exception) -> None:
    if row.status is not None:
        return
    if isinstance(error, RequestError):
        reject(row, stage, error)
    else:
        logger.warning("record %r: %s: %s", row.id, type(error).__name__, error)
        row.stop(Status.FAILED, stage, type(error).__name__, f"record {row.id!r}: image: {type(error).__name__}: {error}")
