"""One raw record and its picture -> its requests: every check of the input contract that needs no pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypedDict

import pyarrow as pa

from pipelines.records.pictures import RecordPicture, stop_without_picture
from pipelines.records.row import Row
from pipelines.records.rules import RecordRules
from pipelines.records.types import is_list_type
from pipelines.records.values import (
    ALLOWED,
    MAX_PROMPT_CHARACTERS,
    OVERRIDES,
    converted,
    read_label,
    read_prompt,
    whole_number,
    wrong_type,
)
from pipelines.store.masking import cut
from vimaedit.errors import RequestError, shown
from vimaedit.seeds import derive_seed
from vimaedit.types import BlendPhrase, EditRequest, RequestOverrides
from vimaedit.words.phrases import blend_error, parse_blend

MAX_SEED = 2**63 - 1
MAX_SEED_DIGITS = 100  # of a text; Python takes time over thousands


class Wanted(TypedDict):
    """What a record wants of one edit, beside its seed: fields of `EditRequest`."""

    source_prompt: str
    target_prompt: str
    blend: tuple[BlendPhrase, ...]
    overrides: RequestOverrides


def has_blends_per_target(kind: pa.DataType) -> bool:
    """Whether a column of blend words has one entry per target prompt, as its type says: a list of lists or of strings."""
    return is_list_type(kind) and not (pa.types.is_struct(kind.value_type) or pa.types.is_null(kind.value_type))


def parse_record(
    rules: RecordRules,
    record: Mapping[str, Any],
    picture: RecordPicture,
    *,
    blends_per_target: bool,
    input_file: str,
    input_row: int,
    first_edit: int,
    count: int,
) -> list[Row]:
    """Turn edits `first_edit ... first_edit + count - 1` of a record into rows; bad ones are rejected, none is lost."""
    label, problem = read_label(record.get("id"), f"{input_file}#{input_row}")
    fitted, rows = picture.fitted, []
    for index in range(first_edit, first_edit + count):
        row = Row(
            id=label,
            edit_index=index,
            input_file=input_file,
            input_row=input_row,
            source_prompt=_shown_prompt(record.get("source_prompt")),
            target_prompt=_shown_prompt(_target(record, index)),
            seed=derive_seed(rules.seed, label),
            image_path=picture.path,
            coded=picture.coded,
            picture=None if fitted is None else fitted.fitted,
            warnings=list(picture.warnings),
        )
        rows.append(row)
        try:
            if problem is not None:
                raise problem
            row.seed = _seed(record.get("seed"), row.seed)
            wanted = parse_edit(record, index, blends_per_target)
        except RequestError as error:
            row.reject("record", error)
            continue
        if picture.error is not None:
            stop_without_picture(row, picture)
            continue
        assert fitted is not None
        row.request = EditRequest(
            id=label,
            image=fitted.fitted.image,
            clip_image=fitted.clip_image,
            given_mask=fitted.mask,
            seed=row.seed,
            instruction=_instruction(record, row),
            **wanted,
        )
    return rows


def parse_edit(record: Mapping[str, Any], index: int, blends_per_target: bool) -> Wanted:
    """Check what a record wants of its edit of that index.

    Raises: RequestError.
    """
    targets = record.get("target_prompt")
    source = read_prompt("source_prompt", record.get("source_prompt"))
    if isinstance(targets, list) and not targets:
        raise RequestError("empty_list", field="target_prompt", got="an empty list", allowed="at least one target prompt")
    target = read_prompt("target_prompt", _target(record, index))
    num_targets = len(targets) if isinstance(targets, list) else 1
    blend = _blend(record.get("blend_words"), index, num_targets, blends_per_target)
    overrides = _overrides(record.get("overrides"))
    return Wanted(source_prompt=source, target_prompt=target, blend=blend, overrides=overrides)


def _instruction(record: Mapping[str, Any], row: Row) -> str | None:
    """Return what a person would ask for, None where the record does not say; what is no text is told, and costs nothing."""
    value = record.get("instruction")
    if isinstance(value, str):
        return value if value.strip() else None
    if value is not None:
        row.warnings.append(f"instruction_unread: got {shown(value)}, which is no text")
    return None


def _target(record: Mapping[str, Any], index: int) -> Any:
    targets = record.get("target_prompt")
    if isinstance(targets, list):
        return targets[index] if targets else None
    return targets


def _shown_prompt(value: Any) -> str | None:
    """Return a prompt as a row shows it whatever becomes of it."""
    return cut(value, MAX_PROMPT_CHARACTERS) if isinstance(value, str) else None


def _seed(value: Any, derived: int) -> int:
    if converted(value) is None:
        return derived
    is_digits = isinstance(value, str) and value.isascii() and value.isdecimal()
    seed = int(value) if is_digits and len(value) <= MAX_SEED_DIGITS else whole_number(value)
    if seed is None:
        raise wrong_type("seed", value)
    if not 0 <= seed <= MAX_SEED:
        raise RequestError("out_of_range", field="seed", got=shown(value), allowed=ALLOWED["seed"])
    return seed


def _blend(value: Any, edit_index: int, num_targets: int, per_target: bool) -> tuple[BlendPhrase, ...]:
    value = converted(value)
    if per_target and value:
        if len(value) != num_targets:
            got = f"{len(value)} entries for {num_targets} target prompts"
            raise blend_error(got, allowed="one entry per target prompt, or one list of {source, target} for all")
        value = value[edit_index]
    if isinstance(value, list) and any(isinstance(entry, tuple) for entry in value):  # a map's key and value name no sides
        raise blend_error(f"a map {shown(value)}")
    return parse_blend(value)


def _overrides(value: Any) -> RequestOverrides:
    if converted(value) is None:
        return RequestOverrides()
    if not isinstance(value, dict):
        raise wrong_type("overrides", value)
    given: dict[str, float] = {}
    for name, number in _flat(value):
        if number is None:
            continue
        if name not in OVERRIDES:
            raise RequestError("unknown_name", field="overrides", got=repr(name), allowed=", ".join(OVERRIDES))
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise wrong_type(f"overrides.{name}", number, allowed="a number or null")
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
