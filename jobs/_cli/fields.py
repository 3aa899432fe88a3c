"""What options a job has: the fields of its dataclass, nested ones by dots, and their types in words."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from vimaedit.errors import ConfigError

TEXT_TYPES = (str, str | None)
TEXTS_TYPE = str | list[str]  # of inputs: one, or several
TYPE_NAMES = {int: "integer", float: "number", bool: "true or false", str: "text"}


def option_keys(config_type: type[Any]) -> Iterator[tuple[str, ...]]:
    """Yield the path of every option, nested ones one by one."""
    for name, hint in field_types(config_type).items():
        if dataclasses.is_dataclass(hint):
            for path in option_keys(typing.cast(type[Any], hint)):
                yield name, *path
        else:
            yield (name,)


def option_type(config_type: type[Any], path: Sequence[str]) -> Any:
    """Return the type of the option at `path`.

    Raises: ConfigError with a suggestion where there is none.
    """
    hint: Any = config_type
    for depth, part in enumerate(path):
        if typing.get_origin(hint) is dict:  # any name may stand in a mapping
            hint = typing.get_args(hint)[1]
            continue
        hints = field_types(typing.cast(type[Any], hint)) if dataclasses.is_dataclass(hint) else {}
        if part not in hints:
            names: dict[str, str] = {}
            for key in option_keys(config_type):
                names[".".join(key)] = ".".join(key)
                names.setdefault(key[0], key[0])
                names.setdefault(key[-1], ".".join(key))
            close = difflib.get_close_matches(".".join(path), names, n=1)
            advice = f"did you mean {names[close[0]]}?" if close else "--help lists all keys"
            raise ConfigError(f"{'.'.join(path[: depth + 1])}: got an unknown key; {advice}")
        hint = hints[part]
    return hint


def field_types(config_type: type[Any]) -> Mapping[str, Any]:
    """Return the resolved types of a dataclass's fields by their names."""
    return _field_types(typing.cast(Any, config_type))  # mypy takes no type for hashable


@cache
def _field_types(config_type: Any) -> Mapping[str, Any]:
    hints = typing.get_type_hints(config_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_type)}


def describe_type(hint: Any) -> str:
    """Say in words what an option of this type may be."""
    if hint in TYPE_NAMES:
        return TYPE_NAMES[hint]
    if dataclasses.is_dataclass(hint):
        inner = ", ".join(f"{name}: {describe_type(kind)}" for name, kind in field_types(typing.cast(type[Any], hint)).items())
        return f"{{{inner}}}"
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return f"list of {describe_type(arguments[0])}"
    if typing.get_origin(hint) is dict:
        return f"mapping of {describe_type(arguments[0])} to {describe_type(arguments[1])}"
    return " or ".join("null" if kind is types.NoneType else describe_type(kind) for kind in arguments)
