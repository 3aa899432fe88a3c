"""The text of `--help`: every key with its type, its default and what its source says of it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from jobs._cli.fields import describe_type
from jobs._cli.options import USAGE


def help_text(config_type: type[Any], *, name: str, summary: str, required: Sequence[str]) -> str:
    """Return the help of job `name`: usage, summary, required keys, then all others."""
    rows = list(_rows(config_type, ()))
    lines = [f"usage: python -m jobs.{name} {USAGE}", "", summary, "", "Required:"]
    lines += [_line(key, kind, None, comment) for key, kind, _, comment in rows if key in required]
    lines += ["", "Options (text is taken literally; other types by YAML's rules; KEY= unsets an optional text):"]
    lines += [_line(key, kind, default, comment) for key, kind, default, comment in rows if key not in required]
    return "\n".join(lines)


def _line(key: str, kind: str, default: str | None, comment: str) -> str:
    value = kind if default is None else f"{kind} = {default}"
    return f"  {key:<22} {value:<38} {comment}".rstrip()


def _rows(config_type: type[Any], prefix: tuple[str, ...]) -> Iterator[tuple[str, str, str, str]]:
    hints = typing.get_type_hints(config_type)
    comments = _comments(config_type)
    for field in dataclasses.fields(config_type):
        hint = hints[field.name]
        path = (*prefix, field.name)
        if dataclasses.is_dataclass(hint):
            yield from _rows(typing.cast(type[Any], hint), path)
            continue
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        yield ".".join(path), describe_type(hint), _default(made), comments.get(field.name, "")


def _default(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if value != "" else '""'


def _comments(config_type: type[Any]) -> dict[str, str]:
    """Return, for every field of a dataclass and its bases, the comment that stands behind it in the source."""
    found: dict[str, str] = {}
    for base in reversed(config_type.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        behind = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        (definition,) = ast.parse(source).body
        for statement in typing.cast(ast.ClassDef, definition).body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                lines = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
                found[statement.target.id] = next((behind[line] for line in lines if line in behind), "")
    return found
