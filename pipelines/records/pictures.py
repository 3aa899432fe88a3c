"""A record's picture and mask: fetched where the record only names them, decoded, and brought to the canvas."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.cluster.logs import fields
from pipelines.records.decoder import CodedRecord, DecoderDied, DecodingFailed, shared_decoder
from pipelines.records.embedded import is_embedded
from pipelines.records.row import Row
from pipelines.records.rules import RecordRules
from pipelines.records.values import find_coded
from pipelines.store.fetch import ReferenceRules, fetch
from pipelines.store.masking import mask_url, mask_urls
from vimaedit.errors import RequestError, shown
from vimaedit.images import FittedPicture
from vimaedit.types import Status

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordPicture:
    """What came of a record's picture: on the canvas, or an error and the stage of it; both where only the mask is bad.

    `path` names it, without credentials; `coded` as it came, only where rows that are written need it.
    """

    path: str | None
    coded: bytes | None = None
    fitted: FittedPicture | None = None
    warnings: tuple[str, ...] = ()  # of decoding
    stage: str = ""
    error: Exception | None = None


def find_picture(record: Mapping[str, Any]) -> bytes | str | RequestError:
    """Give a record's picture: its bytes, what names it, or why it has neither."""
    try:
        return find_coded(record.get("image"), "image")
    except RequestError as error:
        return error


def fetch_picture(rules: ReferenceRules, reference: str) -> bytes | Exception:
    """Fetch a picture that a record names; what goes wrong becomes the row's: nothing a record names may end the run."""
    try:
        return fetch(reference, rules)
    except Exception as error:
        return error


def decode_picture(rules: RecordRules, record: Mapping[str, Any], image: bytes | Exception) -> RecordPicture:
    """Decode the picture and mask of a record once for all its edits; `image` is its picture, fetched, or why it has none.

    Raises: RuntimeError where no process to decode in can be started.
    """
    value = record.get("image")
    name = value.get("path") if isinstance(value, dict) else value
    path = mask_url(name) if isinstance(name, str) and not is_embedded(name) else None
    if isinstance(image, Exception):
        stage = "record" if isinstance(find_picture(record), RequestError) else "fetch"
        return RecordPicture(path=path, stage=stage, error=image)
    mask = _find_mask(record) if rules.reads_masks else None
    try:
        decoded = shared_decoder(
            CodedRecord(
                image=image,
                mask=mask if isinstance(mask, bytes) else None,
                min_side_px=rules.min_side_px,
                max_pixels=rules.max_pixels,
                canvas=rules.canvas,
                clip_side=rules.clip_side,
            )
        )
    except (RequestError, DecoderDied, DecodingFailed) as error:
        return RecordPicture(path=path, stage="decode", error=error)
    bad_mask = mask if isinstance(mask, RequestError) else decoded.bad_mask
    coded = image if rules.keeps_coded else None
    return RecordPicture(
        path=path, coded=coded, fitted=decoded.picture, warnings=decoded.warnings, stage="decode", error=bad_mask
    )


def stop_without_picture(row: Row, picture: RecordPicture) -> None:
    """Settle that a request gets no edit, since its picture or mask could not be had."""
    error, stage = picture.error, picture.stage
    assert error is not None
    if isinstance(error, RequestError):
        row.reject(stage, error)
        return
    kind = error.type if isinstance(error, DecodingFailed) else type(error).__name__
    text = mask_urls(str(error) if isinstance(error, DecoderDied) else f"{kind}: {error}")
    logger.warning("record %s: %s", shown(row.id), text, extra=fields("row_stopped", [row.log_name], stage=stage))
    if isinstance(error, DecoderDied):
        row.attempts = error.tries
        row.stop(Status.QUARANTINED, stage, "process_died", f"record {row.id!r}: {text}")
    else:
        row.stop(Status.FAILED, stage, kind, f"record {row.id!r}: image: {text}")


def _find_mask(record: Mapping[str, Any]) -> bytes | RequestError:
    """Give a record's coded mask, or why it has none."""
    try:
        value = record.get("given_mask")
        if value is None:
            raise RequestError("given_mask_missing", field="given_mask", got="null", allowed="a mask, with grounding=given")
        data = find_coded(value, "given_mask")
    except RequestError as error:
        return error
    if isinstance(data, bytes):
        return data
    got = f"the path {shown(mask_url(data))}"
    return RequestError("wrong_type", field="given_mask", got=got, allowed="binary, or {bytes, path} with bytes")
