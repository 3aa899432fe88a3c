"""The values of a record: one row of the columns that an edit reads, as Python values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa

from pipelines.records.embedded import as_text, is_embedded, read_embedded
from pipelines.records.types import is_list_type
from pipelines.store.fetch import MAX_IMAGE_BYTES
from vimaedit.errors import RequestError, shown
from vimaedit.words.phrases import BLEND_FORMS

OVERRIDES = {
    "thresholds.edit": "edit_threshold",
    "thresholds.critical": "critical_threshold",
    "windows.self": "self_window",
    "windows.text": "text_window",
    "windows.image": "image_window",
    "target_guidance": "target_guidance",
    "image_strength": "image_strength",
}
MAX_PROMPT_CHARACTERS = 100_000  # far beyond what any text encoder reads; tokenizing more takes seconds to minutes
PICTURE = "binary, {bytes, path} or string"
ALLOWED = {
    "image": PICTURE,
    "source_prompt": "a string that is not empty",
    "target_prompt": "a string that is not empty, or a list of such strings",
    "instruction": "a string that is not empty",
    "id": "a string, a UUID or a whole number",
    "blend_words": BLEND_FORMS,
    "given_mask": PICTURE,
    "seed": "a whole number from 0 to 2**63-1, or null",
    "overrides": f"a struct of {', '.join(OVERRIDES)}",
}


def read_record(columns: Mapping[str, pa.Array], index: int) -> dict[str, Any]:
    """Convert one row of the columns named as in the contract. A RequestError stands where a value cannot be converted."""
    return {name: _cell(column, index, name) for name, column in columns.items()}


def read_column(column: pa.Array, field: str) -> list[Any]:
    """Convert a column. A RequestError stands where a value cannot be converted."""
    try:
        return list(column.to_pylist())
    except Exception:  # of one value; the others are had one by one
        return [_cell(column, row, field) for row in range(len(column))]


def converted(value: Any) -> Any:
    """Return a record's value.

    Raises: RequestError where it could not be converted.
    """
    if isinstance(value, RequestError):
        raise value
    return value


def whole_number(value: Any) -> int | None:
    """Return a whole number, of whatever type it is; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, np.floating):
        value = float(value)
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return int(value)
    return None


def find_coded(value: Any, field: str) -> bytes | str:
    """Return a picture's bytes, also where they stand as text (base64, a data URI), or the path or URL that names it.

    Raises: RequestError for null and for values of another type.
    """
    value, path = converted(value), None
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        path, value = value.get("path"), value.get("bytes")
    if isinstance(value, bytes):
        text = as_text(value)
        return _no_larger(value if text is None else read_embedded(text, field), field)
    reference = value if value is not None else path
    if reference is None:
        raise RequestError("null_value", field=field, got="null", allowed=PICTURE)
    if not isinstance(reference, str):
        raise wrong_type(field, reference, allowed=PICTURE)
    return _no_larger(read_embedded(reference, field), field) if is_embedded(reference) else reference


def _no_larger(data: bytes, field: str) -> bytes:
    """Hold a picture that a record brings along to the limit of those that it names."""
    if len(data) > MAX_IMAGE_BYTES:
        got, allowed = f"{len(data)} bytes", f"at most {MAX_IMAGE_BYTES} bytes"
        raise RequestError(f"{field.rpartition('_')[2]}_too_large", field=field, got=got, allowed=allowed)
    return data


def wrong_type(field: str, value: Any, *, allowed: str | None = None) -> RequestError:
    """Say that a value is of a type that its field may not have."""
    got = f"{type(value).__name__} {shown(value)}"
    return RequestError("wrong_type", field=field, got=got, allowed=allowed or ALLOWED[field])


def _cell(column: pa.Array, index: int, field: str) -> Any:
    try:
        if field == "target_prompt" and is_list_type(column.type):
            # One by one: a text that cannot be read costs its own edit only.
            targets = column[index].values
            return None if targets is None else [_cell(targets, place, field) for place in range(len(targets))]
        return column[index].as_py()
    except Exception as error:  # whatever a value does, it may not end the run
        got = f"a value of type {column.type} that cannot be read ({type(error).__name__}: {error})"
        return RequestError("unreadable_value", field=field, got=got, allowed=ALLOWED.get(field, PICTURE))


def read_label(value: Any, fallback: str) -> tuple[str, RequestError | None]:
    """Return what a row is called, and what is wrong with its id."""
    if value is None:
        return fallback, None
    if isinstance(value, RequestError):
        return fallback, value
    if isinstance(value, str | UUID):
        return str(value), None
    number = whole_number(value)
    return (fallback, wrong_type("id", value)) if number is None else (str(number), None)


def read_prompt(field: str, value: Any) -> str:
    """Return a prompt.

    Raises: RequestError for what is none.
    """
    if converted(value) is None:
        raise RequestError("null_value", field=field, got="null", allowed=ALLOWED[field])
    if not isinstance(value, str):
        raise wrong_type(field, value)
    if not value.strip():
        raise RequestError("empty_prompt", field=field, got=shown(value), allowed=ALLOWED[field])
    if len(value) > MAX_PROMPT_CHARACTERS:
        allowed = f"up to {MAX_PROMPT_CHARACTERS} characters"
        raise RequestError("prompt_too_long", field=field, got=f"{len(value)} characters", allowed=allowed)
    return value
