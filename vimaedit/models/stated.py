"""What a model's JSON files state: read with their types checked, and errors of libraries told with the file they come from."""

from __future__ import annotations

import inspect
import json
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vimaedit.errors import ConfigError, WrongWeights, shown

ANY = object()
SHOWN_LINES = 3  # of a library's error


def read_json(option: str, path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises: ConfigError naming the option and the file.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise OSError("it is no ordinary file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WrongWeights(f"{option}: got a model whose {_short(path)} cannot be read: {_first_lines(error, 1)}") from error
    if not isinstance(content, dict):
        raise WrongWeights(f"{option}: got a model whose {_short(path)} holds {shown(content)}; allowed: a JSON object")
    return content


def whole(value: object) -> bool:
    """A whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def number(value: object) -> bool:
    """A number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def factor(value: object) -> bool:
    """A number other than zero, finite."""
    return number(value) and value != 0 and math.isfinite(value)  # type: ignore[arg-type]


def factors(value: object) -> bool:
    """Three finite numbers other than zero, one for each channel of colour."""
    return isinstance(value, list) and len(value) == 3 and all(map(factor, value))


def truth(value: object) -> bool:
    """True or false."""
    return isinstance(value, bool)


def text(value: object) -> bool:
    """A text."""
    return isinstance(value, str)


def mapping(value: object) -> bool:
    """An object."""
    return isinstance(value, Mapping)


def numbers(value: object) -> bool:
    """Three numbers, one for each channel of colour."""
    return isinstance(value, list) and len(value) == 3 and all(map(number, value))


def library_and_class(value: object) -> bool:
    """A list of two texts, library and class."""
    return isinstance(value, list) and len(value) == 2 and all(map(text, value))


def token(value: object) -> bool:
    """A text, or an object that describes a token."""
    return text(value) or (mapping(value) and text(value.get("content")))  # type: ignore[attr-defined]


def sizes(value: object) -> bool:
    """Whole numbers above 0."""
    return isinstance(value, list) and bool(value) and all(map(whole, value))


def sides(value: object) -> bool:
    """A whole number above 0, or several."""
    return whole(value) or sizes(value)


def field(
    option: str, path: Path, content: Mapping[str, Any], name: str, kind: Callable[[object], bool], default: Any = ANY
) -> Any:
    """Return a field of what a file holds; `kind` is one of the functions above. Null is as if it were not there.

    Raises: ConfigError naming the file and the field.
    """
    value = content.get(name)
    if value is None and default is not ANY:
        return default
    if not kind(value):
        allowed = (kind.__doc__ or "").rstrip(".").lower()
        got = shown(value) if name in content else "nothing"
        raise WrongWeights(f"{option}: got a model whose {_short(path)} has {name}: {got}; allowed: {allowed}")
    return value


@contextmanager
def loading(option: str, name: str, path: Path, builder: Callable[..., Any] | None = None) -> Iterator[None]:
    """Turn whatever a library raises while it loads `path` into a WrongWeights that names the file. `builder` is what takes the fields
    of a config file: those that are not of its defaults' types are named too.

    Raises: WrongWeights.
    """
    try:
        yield
    except ConfigError:
        raise
    except BaseException as error:  # each library stumbles over a wrong file in its own way, the tokenizers' by a panic
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if (
            isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        ):  # of torch; the place is at fault, not the file
            raise
        wrong = _wrong_fields(path, builder)
        fields = f" (not of the usual type: {', '.join(wrong)})" if wrong else ""
        is_foreign = isinstance(error, pickle.UnpicklingError)  # whose text advises to trust it
        reason = "it holds more than tensors, or is broken" if is_foreign else _first_lines(error, SHOWN_LINES)
        raise WrongWeights(
            f"{option}: got {name!r}, which does not load: {_short(path)}{fields}: {reason}; allowed: a model as its library saves it"
        ) from error


def _wrong_fields(path: Path, builder: Callable[..., Any] | None) -> list[str]:
    if builder is None or path.suffix != ".json":
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    usual = {key: each.default for key, each in inspect.signature(builder).parameters.items()}
    return [
        f"{key}={shown(value)}"
        for key, value in (content.items() if isinstance(content, dict) else ())
        if usual.get(key) not in (None, inspect.Parameter.empty) and value is not None and not _alike(value, usual[key])
    ]


def _alike(value: object, default: object) -> bool:
    """Whether a value is of a default's type, as JSON writes it: a list for a tuple, one number for several."""
    if isinstance(value, list) and isinstance(default, Sequence) and not isinstance(default, str):
        return not default or all(_alike(each, default[0]) for each in value)
    if isinstance(default, Sequence) and not isinstance(default, str):
        return bool(default) and _alike(value, default[0])
    return all(kind(value) == kind(default) for kind in (number, text, mapping, lambda one: isinstance(one, bool)))


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _first_lines(error: BaseException, count: int) -> str:
    lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()]
    said = " ".join(lines[:count])
    return said if isinstance(error, OSError | ValueError | RuntimeError) and said else f"{type(error).__name__}: {said}"
