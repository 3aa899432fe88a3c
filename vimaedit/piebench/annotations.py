"""PIE-Bench and PIE-Bench++ as published: one annotation -> prompts, blend words, category and scoring mask (method.md 9)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vimaedit.errors import RequestError
from vimaedit.types import BlendPhrase, BoolArray
from vimaedit.words.phrases import find_phrase

SIDE = 512  # of the pictures, and of the masks whatever the size of a picture
CATEGORIES = (
    "0_random",
    "1_change_object",
    "2_add_object",
    "3_delete_object",
    "4_change_attribute_content",
    "5_change_attribute_pose",
    "6_change_attribute_color",
    "7_change_attribute_material",
    "8_change_background",
    "9_change_style",
)
SHOWN_CHARACTERS = 80

# What an annotation says that is taken otherwise than it stands; the ingest counts them.
ONE_WORD = "one_blend_word"  # it counts for the prompt that has it, or for both
MORE_WORDS = "more_than_two_blend_words"  # the first two count, as in published runs
MASK_CLIPPED = "mask_clipped"  # a run of pixels ends behind the last pixel
MASK_EMPTY = "mask_empty"  # only the frame is left


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotation:
    """One entry without its picture. `mask` (512, 512): True = edit, frame included.

    `problems`: what is wrong with fields that only scoring needs; these are None. `notes`: of those above.
    """

    source_prompt: str
    target_prompt: str
    blend: tuple[BlendPhrase, ...]
    category: str | None
    instruction: str | None
    mask: BoolArray | None
    problems: tuple[RequestError, ...]
    notes: tuple[str, ...]


def read_entry(entry: Mapping[str, Any]) -> Annotation:
    """Read an entry of PIE-Bench's `mapping_file.json`.

    Raises: RequestError for a prompt that is missing, of a wrong type or empty: then there is nothing to edit.
    """
    source, target = (_prompt(entry, name) for name in ("original_prompt", "editing_prompt"))
    reader = _Reader(source=source, target=target)
    return reader.annotation(
        blend=lambda: _one_pair(reader, "blended_word", entry.get("blended_word"), None),
        category=lambda: _category_of_id(entry.get("editing_type_id")),
        instruction=lambda: _optional_text("editing_instruction", entry.get("editing_instruction")),
        mask=lambda: _mask(reader, entry.get("mask")),
    )


def read_row(row: Mapping[str, Any], folder: str) -> Annotation:
    """Read a row of PIE-Bench++, in which a RequestError stands where a value cannot be read. `folder`: the configuration that it
    stands in, which names its category.

    Raises: RequestError as `read_entry`.
    """
    source, target = (_prompt(row, name) for name in ("source_prompt", "target_prompt"))
    reader = _Reader(source=source, target=target)
    return reader.annotation(
        blend=lambda: _pairs(reader, _readable(row.get("blended_words"))),
        category=lambda: _category_of_folder(folder),
        instruction=lambda: None,
        mask=lambda: _mask(reader, _readable(row.get("mask"))),
    )


def strip_brackets(text: str) -> str:
    """Remove the brackets with which the benchmark marks what changes; all else stays as it stands."""
    return text.replace("[", "").replace("]", "")


def decode_runs(numbers: Sequence[int], side: int = SIDE) -> tuple[BoolArray, bool]:
    """Decode (start, length) pairs over the pixels in row-major order; returns the mask and whether a run was clipped.

    Shapes: returns (side, side), without the frame.

    Raises: RequestError for an odd count or a negative number.
    """
    if len(numbers) % 2:
        raise RequestError("mask_odd", field="mask", got=f"{len(numbers)} numbers", allowed="pairs of start and length")
    flat = np.zeros(side * side, dtype=np.bool_)
    clipped = False
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        if start < 0 or length < 0:
            raise RequestError("mask_negative", field="mask", got=f"the run ({start}, {length})", allowed="numbers from 0 on")
        flat[start : start + length] = True
        clipped |= start + length > flat.size
    return flat.reshape(side, side), clipped


def with_frame(mask: BoolArray) -> BoolArray:
    """Return the mask with its outermost pixels set: annotations are not exact there, so scoring leaves them out."""
    framed = mask.copy()
    framed[[0, -1], :] = True
    framed[:, [0, -1]] = True
    return framed


class _Reader:
    """Collects what is noted and what is wrong while one annotation is read."""

    def __init__(self, *, source: str, target: str) -> None:
        self.source = source
        self.target = target
        self.notes: list[str] = []
        self._problems: list[RequestError] = []

    def annotation(self, **fields: Any) -> Annotation:
        values = {name: self._value(read) for name, read in fields.items()}
        return Annotation(
            source_prompt=self.source,
            target_prompt=self.target,
            **{**values, "blend": values["blend"] or ()},
            problems=tuple(self._problems),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _value(self, read: Any) -> Any:
        try:
            return read()
        except RequestError as error:
            self._problems.append(error)
            return None


def _prompt(entry: Mapping[str, Any], field: str) -> str:
    value = _readable(entry.get(field))
    text = strip_brackets(_text(field, value))
    if not text.strip():
        raise RequestError("empty_prompt", field=field, got=repr(value), allowed="text that is not empty")
    return text


def _readable(value: Any) -> Any:
    if isinstance(value, RequestError):
        raise value
    return value


def _optional_text(field: str, value: Any) -> str | None:
    return None if value is None else _text(field, value) or None


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RequestError("wrong_type", field=field, got=_shown(value), allowed="text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can name half a character
        raise RequestError("not_utf8", field=field, got=_shown(value), allowed="UTF-8 text") from error
    return value


def _one_pair(reader: _Reader, field: str, value: Any, separator: str | None) -> tuple[BlendPhrase, ...]:
    """Read `source target`: the words between separators (None: white space)."""
    if value is None:
        return ()
    words = [word.strip() for word in strip_brackets(_text(field, value)).split(separator)]
    if not any(words):
        return ()
    if len(words) > 1:
        if len(words) > 2:
            reader.notes.append(MORE_WORDS)
        return (BlendPhrase(source=words[0] or None, target=words[1] or None),) if any(words[:2]) else ()
    reader.notes.append(ONE_WORD)
    in_source, in_target = (bool(find_phrase(prompt, words[0])) for prompt in (reader.source, reader.target))
    return (
        BlendPhrase(
            source=words[0] if in_source or not in_target else None,
            target=words[0] if in_target or not in_source else None,
        ),
    )


def _pairs(reader: _Reader, value: Any) -> tuple[BlendPhrase, ...]:
    """Read PIE-Bench++'s list of `source,target`, as JSON or as a list."""
    entries = value
    if isinstance(value, str):
        try:
            entries = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError) as error:
            raise RequestError("not_json", field="blended_words", got=_shown(value), allowed="a JSON list of texts") from error
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise RequestError("wrong_type", field="blended_words", got=_shown(value), allowed="a JSON list of texts")
    return tuple(phrase for entry in entries for phrase in _one_pair(reader, "blended_words", entry, ","))


def _category_of_id(value: Any) -> str:
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not re.fullmatch("[0-9]", text):
        raise RequestError("unknown_category", field="editing_type_id", got=_shown(value), allowed='"0" to "9"')
    return CATEGORIES[int(text)]


def _category_of_folder(folder: str) -> str:
    for part in reversed(folder.split("/")):
        for category in CATEGORIES:
            if re.fullmatch(rf"{category}(_\d+)?", part):
                return category
    raise RequestError("unknown_category", field="folder", got=_shown(folder), allowed=f"folders like {CATEGORIES[0]}_140")


def _mask(reader: _Reader, value: Any) -> BoolArray:
    if isinstance(value, str):
        numbers: list[Any] = [int(word) if re.fullmatch(r"-?\d{1,9}", word) else word for word in value.split()]
    elif isinstance(value, list):
        numbers = value
    else:
        raise RequestError("wrong_type", field="mask", got=_shown(value), allowed="start and length of every run of pixels")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int):
            raise RequestError("wrong_type", field="mask", got=f"{_shown(number)} among the numbers", allowed="integers")
    mask, clipped = decode_runs(numbers)
    if clipped:
        reader.notes.append(MASK_CLIPPED)
    if not mask.any():
        reader.notes.append(MASK_EMPTY)
    return with_frame(mask)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
