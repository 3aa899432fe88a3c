"""One raw record -> its requests: every check of the input contract that needs no pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipelines.output.context import Row
from pipelines.records.types import is_list_type
from pipelines.store.text import cut
from vimaedit.errors import RequestError, shown
from vimaedit.types import BlendPhrase, RequestOverrides, Status
from vimaedit.words.phrases import BLEND_FORMS, blend_error, parse_blend

OVERRIDES = {
    "thresholds.edit": "edit_threshold",
    "thresholds.critical": "critical_threshold",
    "windows.self": "self_window",
    "windows.text": "text_window",
    "windows.image": "image_window",
    "target_guidance": "target_guidance",
    "image_strength": "image_strength",
}
ALLOWED = {
    "image": "binary, {bytes, path} or string",
    "source_prompt": "a string that is not empty",
    "target_prompt": "a string that is not empty, or a list of such strings",
    "id": "a string or an integer",
    "blend_words": BLEND_FORMS,
    "given_mask": "binary, {bytes, path} or string",
    "seed": "an integer from 0 to 2**63-1, or null",
    "overrides": f"a struct of {', '.join(OVERRIDES)}",
}
MAX_SEED = 2**63 - 1
MAX_PROMPT_CHARACTERS = 100_000  # far beyond what any text encoder reads; tokenizing more takes seconds to minutes


def read_record(columns: Mapping[str, pa.Array], index: int) -> dict[str, Any]:
    """Convert one row of the columns named as in the contract. A RequestError stands where a value cannot be converted."""
    return {name: _cell(column, index, name) for name, column in columns.items()}


def has_blends_per_target(kind: pa.DataType) -> bool:
    """Whether a column of blend words has one entry per target prompt, as its type says: a list of lists or of strings."""
    return is_list_type(kind) and not (pa.types.is_struct(kind.value_type) or pa.types.is_null(kind.value_type))


def parse_record(
    record: Mapping[str, Any], *, blends_per_target: bool, input_file: str, input_row: int, first_edit: int, count: int
) -> list[Row]:
    """Turn edits `first_edit ... first_edit + count - 1` of a record into rows; bad ones are rejected, none is lost."""
    label, problem = _label(record.get("id"), f"{input_file}#{input_row}")
    rows = []
    for index in range(first_edit, first_edit + count):
        row = Row(id=label, edit_index=index, input_file=input_file, input_row=input_row)
        rows.append(row)
        try:
            _fill(row, record, problem, blends_per_target)
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
    value, path = _converted(value), None
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        path, value = value.get("path"), value.get("bytes")
    if isinstance(value, bytes):
        return value
    reference = value if value is not None else path
    if reference is None:
        raise RequestError("null_value", field=field, got="null", allowed=ALLOWED[field])
    if not isinstance(reference, str):
        raise _wrong_type(field, reference)
    return reference


def _label(value: Any, fallback: str) -> tuple[str, RequestError | None]:
    if value is None:
        return fallback, None
    if isinstance(value, RequestError):
        return fallback, value
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return fallback, _wrong_type("id", value)
    return str(value), None


def _fill(row: Row, record: Mapping[str, Any], problem: RequestError | None, blends_per_target: bool) -> None:
    source = record.get("source_prompt")
    targets = record.get("target_prompt")
    # The prompts first: a rejected row shows what it was about.
    row.source_prompt = cut(source, MAX_PROMPT_CHARACTERS) if isinstance(source, str) else None
    target = targets
    if isinstance(targets, list):
        target = targets[row.edit_index] if targets else None
    row.target_prompt = cut(target, MAX_PROMPT_CHARACTERS) if isinstance(target, str) else None
    if problem is not None:
        raise problem
    row.seed = _seed(record.get("seed"))
    _prompt("source_prompt", source)
    if isinstance(targets, list) and not targets:
        raise RequestError("empty_list", field="target_prompt", got="an empty list", allowed="at least one target prompt")
    _prompt("target_prompt", target)
    num_targets = len(targets) if isinstance(targets, list) else 1
    row.blend = _blend(record.get("blend_words"), row.edit_index, num_targets, blends_per_target)
    row.overrides = _overrides(record.get("overrides"))
    image_source(record.get("image"), "image")


def _prompt(field: str, value: Any) -> None:
    if _converted(value) is None:
        raise RequestError("null_value", field=field, got="null", allowed=ALLOWED[field])
    if not isinstance(value, str):
        raise _wrong_type(field, value)
    if not value.strip():
        raise RequestError("empty_prompt", field=field, got=shown(value), allowed=ALLOWED[field])
    if len(value) > MAX_PROMPT_CHARACTERS:
        allowed = f"up to {MAX_PROMPT_CHARACTERS} characters"
        raise RequestError("prompt_too_long", field=field, got=f"{len(value)} characters", allowed=allowed)


def _seed(value: Any) -> int | None:
    if _converted(value) is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type("seed", value)
    if not 0 <= value <= MAX_SEED:
        raise RequestError("out_of_range", field="seed", got=str(value), allowed=ALLOWED["seed"])
    return value


def _blend(value: Any, edit_index: int, num_targets: int, per_target: bool) -> tuple[BlendPhrase, ...]:
    value = _converted(value)
    if per_target and value:
        if len(value) != num_targets:
            got = f"{len(value)} entries for {num_targets} target prompts"
            raise blend_error(got, allowed="one entry per target prompt, or one list of {source, target} for all")
        value = value[edit_index]
    if isinstance(value, list) and any(isinstance(entry, tuple) for entry in value):  # a map's key and value name no sides
        raise blend_error(f"a map {shown(value)}")
    return parse_blend(value)


def _overrides(value: Any) -> RequestOverrides:
    if _converted(value) is None:
        return RequestOverrides()
    if not isinstance(value, dict):
        raise _wrong_type("overrides", value)
    given: dict[str, float] = {}
    for name, number in _flat(value):
        if number is None:
            continue
        if name not in OVERRIDES:
            raise RequestError("unknown_name", field="overrides", got=repr(name), allowed=", ".join(OVERRIDES))
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise _wrong_type(f"overrides.{name}", number, allowed="a number or null")
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


def _cell(column: pa.Array, index: int, field: str) -> Any:
    try:
        if field == "target_prompt" and is_list_type(column.type):
            # One by one: a text that cannot be read costs its own edit only.
            targets = column[index].values
            return None if targets is None else [_cell(targets, place, field) for place in range(len(targets))]
        return column[index].as_py()
    except Exception as error:  # whatever a value does, it may not end the run
        got = f"a value of type {column.type} that cannot be read ({type(error).__name__}: {error})"
        return RequestError("unreadable_value", field=field, got=got, allowed=ALLOWED[field])


def _converted(value: Any) -> Any:
    """Return a record's value.

    Raises: RequestError where it could not be converted.
    """
    if isinstance(value, RequestError):
        raise value
    return value


def _wrong_type(field: str, value: Any, *, allowed: str | None = None) -> RequestError:
    got = f"{type(value).__name__} {shown(value)}"
    return RequestError("wrong_type", field=field, got=got, allowed=allowed or ALLOWED[field])
