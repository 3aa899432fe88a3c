"""What has to become of a record of a class, and checks of the rows against it."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.world import CANARY_COLOUR, CANARY_TEXT

MESSAGE = re.compile(r"record (?P<id>.*?): (?P<field>[a-z_]+)(\.[^:]*)?: got (?P<got>.+); allowed: (?P<allowed>.+)", re.DOTALL)
NO_EDIT = ("edited_image", "edit_mask", "critical_mask", "metrics")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Statuses that a row may have; of a rejected one its stages and fields."""

    statuses: frozenset[str]
    stages: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset()


CANARY_PIXELS = 16  # the canary is of one colour, of which single pixels stand in drawn pictures by chance


def ok() -> Verdict:
    return Verdict(statuses=frozenset({"ok"}))


def rejected(stages: str, fields: str, *, or_ok: bool = False) -> Verdict:
    """A rejection; stages and fields are written with spaces between. `or_ok`: or an edit, by what chance made."""
    statuses = frozenset({"rejected", "ok"} if or_ok else {"rejected"})
    return Verdict(statuses=statuses, stages=frozenset(stages.split()), fields=frozenset(fields.split()))


def fetched(stages: str, fields: str) -> Verdict:
    """What an unreliable server may make of a record: anything but a quarantine."""
    return Verdict(
        statuses=frozenset({"rejected", "ok", "failed"}), stages=frozenset(stages.split()), fields=frozenset(fields.split())
    )


def complaints(row: Mapping[str, Any], verdict: Verdict) -> list[str]:
    """Say what is wrong with a row: nothing where it is as the verdict says."""
    status, message = row["status"], row["error_message"]
    found = []
    if status not in verdict.statuses:
        found.append(f"status {status}, expected {sorted(verdict.statuses)}")
    if status == "ok":
        if row["edited_image"] is None or message is not None or row["error_stage"] is not None:
            found.append("an ok row without its picture, or with an error")
        return found
    if any(row[name] is not None for name in NO_EDIT):
        found.append(f"a {status} row with one of {NO_EDIT}")
    if not message or not row["error_type"] or not row["error_stage"]:
        return [*found, f"a {status} row without message, type or stage"]
    if status != "rejected" or "rejected" not in verdict.statuses:
        return found
    match = MESSAGE.fullmatch(message)
    if match is None:
        found.append("a message without record, field, got or allowed")
    elif match["field"] not in verdict.fields:
        found.append(f"field {match['field']}, expected {sorted(verdict.fields)}")
    if row["error_stage"] not in verdict.stages:
        found.append(f"stage {row['error_stage']}, expected {sorted(verdict.stages)}")
    if len(message) > 5000:
        found.append(f"a message of {len(message)} characters")
    return found


def shows_canary(row: Mapping[str, Any]) -> bool:
    """Whether a row holds what lies outside the allowed root: the canary's text anywhere, or its colour in a picture."""
    if CANARY_TEXT in repr({**row, "image": None, "edited_image": None}).encode():
        return True
    picture = row["image"]
    if picture is None or picture["bytes"] is None:
        return False
    with Image.open(io.BytesIO(picture["bytes"])) as image:
        pixels = np.asarray(image.convert("RGB"))
    return int((pixels == CANARY_COLOUR).all(axis=-1).sum()) >= CANARY_PIXELS
