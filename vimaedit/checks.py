"""Checks of settings: each raises `ConfigError` with what was got and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from vimaedit.errors import ConfigError


def check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise `ConfigError` unless `value` is one of `allowed`."""
    if value not in tuple(allowed):
        raise ConfigError(f"{name}: got {value!r}; allowed: {', '.join(allowed)}")


def check_types(config: object) -> None:
    """Raise `ConfigError` for a field of a settings dataclass whose value is not of its type (a whole number is a float too)."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _is_of(value, hint):
            raise ConfigError(f"{name}: got {value!r}; allowed: {getattr(hint, '__name__', None) or hint}")


def _is_of(value: object, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_is_of(value, option) for option in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    kind = get_origin(hint) or hint
    if not isinstance(value, kind):
        return False
    return kind is not list or all(_is_of(item, get_args(hint)[0]) for item in value)


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `ConfigError` unless low <= value <= high (NaN never is)."""
    if not low <= value <= high:
        raise ConfigError(f"{name}: got {value}; allowed: {low} to {high}")
