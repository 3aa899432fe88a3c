"""One raw record -> its requests: every check of the input contract that needs no pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipelines.context import Row
from vimaedit.errors import RequestError
from vimaedit.types import BlendPhrase, RequestOverrides, Status

OVERRIDES = {
    "thresholds.edit": "edit_threshold",
    "thresholds.critical": "critical_threshold",
    "windows.self": "self_window",
    "windows.text": "text_window",
    "windows.image": "image_window",
    "target_guidance": "target_guidance",
    "image_strength": "image_strength",
}
MAX_SEED = 2**63 - 1
SHOWN_CHARACTERS = 80


def parse_record(record: Mapping[str, Any], *, input_file: str, input_row: int, first_edit: int, count: int) -> list[Row]:
    """Turn edits `first_edit ... first_edit + count - 1` of a record into rows; bad ones are rejected, none is lost."""
    label, problem = _label(record.get("id"), f"{input_file}#{input_row}")
    rows = []
    for index in range(first_edit, first_edit + count):
        row = Row(id=label, edit_index=index, input_file=input_file, input_row=input_row)
        rows.append(row)
        try:
            _fill(row, record, problem)
        except RequestError as error:
            reject(row, "record", error)
    return rows


def reject(row: Row, stage: str, error: RequestError) -> None:
    """Settle that a request cannot be edited as asked; the text names record, field, what was got and what is allowed."""
    row.stop(Status.REJECTED, stage, error.code, f"record {row.id!r}: {error}")


def image_source(value: Any, field: str) -> bytes | str:
    """Return a picture's bytes, or the path or URL that names it.

    Raises: RequestError for null and for values of another type.
    """
    allowed = "binary, {bytes, path} or string"
    path = None
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        path, value = value.get("path"), value.get("bytes")
    if isinstance(value, bytes):
        return value
    reference = value if value is not None else path
    if reference is None:
        raise RequestError("null_value", field=field, got="null", allowed=allowed)
    if not isinstance(reference, str):
        raise _wrong_type(field, value, allowed)
    return reference


def _label(value: Any, fallback: str) -> tuple[str, RequestError | None]:
    if value is None:
        return fallback, None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return fallback, _wrong_type("id", value, "a string or an integer")
    return str(value), None


def _fill(row: Row, record: Mapping[str, Any], problem: RequestError | None) -> None:
    source = record.get("source_prompt")
    targets = record.get("target_prompt")
    # The prompts first: a rejected row shows what it was about.
    row.source_prompt = source if isinstance(source, str) else None
    target = targets
    if isinstance(targets, list):
        target = targets[row.edit_index] if targets else None
    row.target_prompt = target if isinstance(target, str) else None
    if problem is not None:
        raise problem
    row.seed = _seed(record.get("seed"))
    _prompt("source_prompt", source, "a string that is not empty")
    if isinstance(targets, list) and not targets:
        raise RequestError("empty_list", field="target_prompt", got="an empty list", allowed="at least one target prompt")
    _prompt("target_prompt", target, "a string that is not empty, or a list of such strings")
    num_targets = len(targets) if isinstance(targets, list) else 1
    row.blend = _blend(record.get("blend_words"), row.edit_index, num_targets)
    row.overrides = _overrides(record.get("overrides"))
    image_source(record.get("image"), "image")


def _prompt(field: str, value: Any, allowed: str) -> None:
    if value is None:
        raise RequestError("null_value", field=field, got="null", allowed=allowed)
    if not isinstance(value, str):
        raise _wrong_type(field, value, allowed)
    if not value.strip():
        raise RequestError("empty_prompt", field=field, got=repr(value), allowed=allowed)


def _seed(value: Any) -> int | None:
    allowed = "an integer from 0 to 2**63-1, or null"
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type("seed", value, allowed)
    if not 0 <= value <= MAX_SEED:
        raise RequestError("out_of_range", field="seed", got=str(value), allowed=allowed)
    return value


def _blend(value: Any, edit_index: int, num_targets: int) -> tuple[BlendPhrase, ...]:
    if isinstance(value, list) and value and not all(isinstance(entry, dict) for entry in value):
        if len(value) != num_targets:
            raise RequestError(
                "wrong_length",
                field="blend_words",
                got=f"{len(value)} entries for {num_targets} target prompts",
                allowed="one entry per target prompt, or one list of {source, target} for all",
            )
        value = value[edit_index]
    if value is None:
        return ()
    if isinstance(value, str):
        return _blend_of_words(value)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise _wrong_type("blend_words", value, "a list of {source, target}, or two words like 'cat dog'")
    return tuple(_phrase(entry) for entry in value)


def _blend_of_words(text: str) -> tuple[BlendPhrase, ...]:
    words = text.split()
    if not words:
        return ()
    if len(words) != 2:
        raise RequestError(
            "wrong_length",
            field="blend_words",
            got=f"{shown(text)} with {len(words)} words",
            allowed="two words, source and target; phrases as a list of {source, target}",
        )
    return (BlendPhrase(source=words[0], target=words[1]),)


def _phrase(entry: dict[str, Any]) -> BlendPhrase:
    sides = {}
    for side in ("source", "target"):
        phrase = entry.get(side)
        if phrase is not None and not isinstance(phrase, str):
            raise _wrong_type(f"blend_words.{side}", phrase, "a string or null")
        sides[side] = phrase.strip() or None if phrase is not None else None
    if not any(sides.values()):
        raise RequestError(
            "null_value", field="blend_words", got="a pair without words", allowed="a phrase in source, target or both"
        )
    return BlendPhrase(**sides)


def _overrides(value: Any) -> RequestOverrides:
    if value is None:
        return RequestOverrides()
    allowed = ", ".join(OVERRIDES)
    if not isinstance(value, dict):
        raise _wrong_type("overrides", value, f"a struct of {allowed}")
    given: dict[str, float] = {}
    for name, number in _flat(value):
        if number is None:
            continue
        if name not in OVERRIDES:
            raise RequestError("unknown_name", field="overrides", got=repr(name), allowed=allowed)
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise _wrong_type(f"overrides.{name}", number, "a number or null")
        given[OVERRIDES[name]] = float(number)
    return dataclasses.replace(RequestOverrides(), **given)


def _flat(value: dict[str, Any]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, inner in value.items():
        if isinstance(inner, dict):
            pairs += [(f"{name}.{key}", number) for key, number in inner.items()]
        else:
            pairs.append((name, inner))
    return pairs


def _wrong_type(field: str, value: Any, allowed: str) -> RequestError:
    return RequestError("wrong_type", field=field, got=f"{type(value).__name__} {shown(value)}", allowed=allowed)


def shown(value: Any) -> str:
    """Show a value in an error's text, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
