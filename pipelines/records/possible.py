"""What the type of a column says of its values: whether any row can be edited with them, before one is read."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.types as kinds

from pipelines.records.types import is_list_type

PICTURES = "binary, text, or a struct of bytes and path"
ALLOWED_TYPES = {
    "image": PICTURES,
    "source_prompt": "text",
    "target_prompt": "text, or lists of texts",
    "id": "text, integers, UUIDs, or decimals and floating-point numbers that are whole",
    "blend_words": "text, or lists of structs of source and target",
    "given_mask": PICTURES,
    "seed": "integers, or decimals, floating-point numbers and texts that are whole numbers",
    "overrides": "a struct",
}
NEEDED = ("image", "source_prompt", "target_prompt")  # where null is no value either


def can_hold(name: str, kind: pa.DataType) -> bool:
    """Whether a column of this type can hold what a column of the contract may."""
    if kinds.is_null(kind):
        return name not in NEEDED
    return CHECKS[name](kind)


def _bare(kind: pa.DataType) -> pa.DataType:
    if kinds.is_dictionary(kind):
        return _bare(kind.value_type)
    return _bare(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def _is_text(kind: pa.DataType) -> bool:
    kind = _bare(kind)
    return bool(kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    kind = _bare(kind)
    return bool(kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind))


def _is_binary(kind: pa.DataType) -> bool:
    kind = _bare(kind)
    return bool(
        kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind) or kinds.is_fixed_size_binary(kind)
    )


def _is_picture(kind: pa.DataType) -> bool:
    kind = _bare(kind)
    if not kinds.is_struct(kind):
        return _is_text(kind) or _is_binary(kind)
    fields = {field.name: field.type for field in kind}
    coded, path = fields.get("bytes", pa.null()), fields.get("path", pa.null())
    return _is_binary(coded) or _is_text(coded) or _is_text(path)


def _is_target(kind: pa.DataType) -> bool:
    kind = _bare(kind)
    return _is_text(kind) or (is_list_type(kind) and _is_text(kind.value_type))


def _is_blend(kind: pa.DataType) -> bool:
    kind = _bare(kind)
    if is_list_type(kind):  # of one phrase each, or of what each target has
        value = _bare(kind.value_type)
        return bool(kinds.is_struct(value) or kinds.is_null(value)) or _is_blend(value)
    return _is_text(kind)


CHECKS: dict[str, Callable[[pa.DataType], bool]] = {
    "image": _is_picture,
    "source_prompt": _is_text,
    "target_prompt": _is_target,
    "id": lambda kind: isinstance(kind, pa.UuidType) or _is_text(kind) or _is_number(kind),
    "blend_words": _is_blend,
    "given_mask": _is_picture,
    "seed": lambda kind: _is_text(kind) or _is_number(kind),
    "overrides": lambda kind: bool(kinds.is_struct(_bare(kind))),
}
