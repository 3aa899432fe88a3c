"""A record's picture and mask: fetched where the record only names them, decoded, and brought to the canvas."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cluster.logs import fields
from pipelines.output.context import Row, RunContext
from pipelines.records.decoder import CodedRecord, DecodedRecord, DecoderDied, DecodingFailed, decoder
from pipelines.records.parse import image_source, reject
from pipelines.store.fetch import fetch
from pipelines.store.masking import mask_url, mask_urls
from vimaedit.errors import RequestError, shown
from vimaedit.types import Status

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
    """Decode the picture and mask of a record once for all its edits. Rows rejected before keep their reason.

    Raises: RuntimeError where no process to decode in can be started.
    """
    path = values["image"].get("path") if isinstance(values.get("image"), dict) else values.get("image")
    for row in rows:
        row.image_path = mask_url(path) if isinstance(path, str) else None
    if isinstance(image, Exception):
        _stop(rows, "fetch", image)
        return
    mask = _mask_source(values) if context.job.grounding == "given" else None
    try:
        decoded = decoder(
            CodedRecord(
                image=image,
                mask=mask if isinstance(mask, bytes) else None,
                min_side_px=context.job.min_side_px,
                max_pixels=context.job.max_pixels,
                canvas=context.canvas,
                clip_side=context.facts.clip_side,
            )
        )
    except (RequestError, DecoderDied, DecodingFailed) as error:
        _stop(rows, "decode", error)
        return
    _take(rows, decoded, image if context.job.frame == "original" else None)
    bad_mask = next((each for each in (mask, decoded.bad_mask) if isinstance(each, RequestError)), None)
    if bad_mask is not None:
        _stop(rows, "decode", bad_mask)


def _mask_source(values: Mapping[str, Any]) -> bytes | RequestError:
    """Give a record's coded mask, or why it has none."""
    try:
        value = values.get("given_mask")
        if value is None:
            raise RequestError("given_mask_missing", field="given_mask", got="null", allowed="a mask, with grounding=given")
        data = image_source(value, "given_mask")
    except RequestError as error:
        return error
    if isinstance(data, bytes):
        return data
    got = f"the path {shown(mask_url(data))}"
    return RequestError("wrong_type", field="given_mask", got=got, allowed="binary, or {bytes, path} with bytes")


def _take(rows: Sequence[Row], decoded: DecodedRecord, original: bytes | None) -> None:
    picture = decoded.picture
    for row in rows:
        row.canvas, row.clip_image, row.original = picture.fitted.image, picture.clip_image, original
        row.original_size, row.crop_box = picture.fitted.size, picture.fitted.crop_box
        row.given_mask = picture.mask


def _stop(rows: Sequence[Row], stage: str, error: Exception) -> None:
    for row in rows:
        if row.status is not None:
            continue
        if isinstance(error, RequestError):
            reject(row, stage, error)
            continue
        kind = error.type if isinstance(error, DecodingFailed) else type(error).__name__
        text = mask_urls(str(error) if isinstance(error, DecoderDied) else f"{kind}: {error}")
        logger.warning("record %s: %s", shown(row.id), text, extra=fields("row_stopped", [row], stage=stage))
        if isinstance(error, DecoderDied):
            row.attempts = error.tries
            row.stop(Status.QUARANTINED, stage, "process_died", f"record {row.id!r}: {text}")
        else:
            row.stop(Status.FAILED, stage, kind, f"record {row.id!r}: image: {text}")
