"""Texts that people read: cut where a value is too long to be of use, and without credentials."""

from __future__ import annotations

import re
from typing import Any

from pipelines.store.masking import mask_urls

QUOTED_CHARACTERS = 200  # of a value that an error's text quotes
QUOTED = re.compile(rf"""(['"])((?:(?!\1).){{{QUOTED_CHARACTERS}}})(?:(?!\1).)+\1""", re.DOTALL)


# What moves a terminal's cursor, ends a line, turns the reading direction around, or cannot be encoded.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return the text with control characters as Python writes them: nothing in it can forge a line or steer a terminal."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def cut(text: str, characters: int) -> str:
    """Return the text, or its beginning and dots where it is longer than so many characters."""
    return text if len(text) <= characters else f"{text[: max(0, characters - 3)]}..."


def cut_quotes(text: str) -> str:
    """Cut every value that an error's text quotes, so that what was got and what is allowed both stay readable."""
    return QUOTED.sub(r"\1\2...\1", text)


def without_secrets(value: Any) -> Any:
    """Mask the credentials of all URLs among nested lists and mappings of plain values."""
    if isinstance(value, str):
        return mask_urls(value)
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return value
