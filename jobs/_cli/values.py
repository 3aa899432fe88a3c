"""Values of options from the command line, YAML files and models' recipes, before a dataclass is built from them.

Text is taken literally wherever it comes from: prompts contain `#`, `:`, `[`, `no`, `$`. Every other type is read by YAML's
rules. Nothing is interpolated: `${...}` is text, or a wrong value where no text may stand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from jobs._cli.fields import TEXT_TYPES, TEXTS_TYPE, describe_type, field_types, option_type
from pipelines.store.masking import cut
from vimaedit.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from vimaedit import BlendPhrase

# What YAML reads as a number in another base than it looks: 010 is 8, 1:30 is 90.
OTHER_BASES = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-9_]+)+(\.[0-9_]*)?)")
NULL_TAG = "tag:yaml.org,2002:null"
INT_TAG = "tag:yaml.org,2002:int"
MISSING = re.compile(r"\\*\?\?\?")  # OmegaConf's sign for a missing value, perhaps with backslashes before it
SHOWN_CHARACTERS = 200

Assignment = tuple[tuple[str, ...], Any]  # the path of an option, and what it is set to


def command_assignments(config_type: type[Any], key: str, text: str) -> Iterator[Assignment]:
    """Read one `key=text` of a command line; a mapping gives an assignment for each of its entries."""
    path = tuple(key.split("."))
    hint = option_type(config_type, path)
    if hint in TEXT_TYPES:
        # Nothing after the equals sign unsets an optional text, since the word null is text like any other.
        yield path, None if not text and hint is not str else _literal(text, key)
        return
    if hint == TEXTS_TYPE and not _is_list(text):
        yield path, _literal(text, key)
        return
    try:
        node = compose_yaml(text) or yaml.ScalarNode(NULL_TAG, "")
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{key}: got {cut(repr(text), SHOWN_CHARACTERS)}, which is not YAML ({_one_line(error)}); allowed: {describe_type(hint)}"
        ) from error
    yield from _assignments(config_type, path, node)


def _is_list(text: str) -> bool:
    """Whether a text is meant as a list of texts, and not as one that begins with a bracket, as globs may."""
    if not text.startswith("[") or os.path.lexists(text):
        return False
    with contextlib.suppress(yaml.YAMLError):
        return isinstance(compose_yaml(text), yaml.SequenceNode)
    return False


def file_assignments(config_type: type[Any], file: Path) -> Iterator[Assignment]:
    """Read a YAML file of options."""
    try:
        node = compose_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: got {file}, which cannot be read ({error}); allowed: a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config: got {file}, which is not YAML ({_one_line(error)}); allowed: key: value lines") from error
    if node is None:
        return
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"--config: got {file}, which holds no mapping; allowed: key: value lines")
    yield from _assignments(config_type, (), node)


def recipe_assignments(config_type: type[Any], recipe: Mapping[str, Any]) -> Iterator[Assignment]:
    """Read a recipe, plain values as a model's JSON states them, by the same rules as a file."""
    yield from _assignments(config_type, (), yaml.SafeDumper(io.StringIO()).represent_data(recipe))


def check_once(assignments: list[Assignment]) -> list[Assignment]:
    """Return the assignments of one source.

    Raises: ConfigError for an option that is set twice, `windows={self: 0.3}` and `windows.self=0.5` for one.
    """
    seen: set[tuple[str, ...]] = set()
    for path, _ in assignments:
        if path in seen:
            raise ConfigError(f"{'.'.join(path)}: got it twice; allowed: once")
        seen.add(path)
    return assignments


def _assignments(config_type: type[Any], path: tuple[str, ...], node: yaml.Node) -> Iterator[Assignment]:
    """Yield what a node sets, entry by entry where options or a mapping's names lie below it."""
    hint = option_type(config_type, path)
    key = ".".join(path)
    is_options = dataclasses.is_dataclass(hint)
    if isinstance(node, yaml.MappingNode) and (is_options or (typing.get_origin(hint) is dict and node.value)):
        for name, value in _pairs(node, key or "--config"):
            # Names of options may be written with dots, those of a mapping are what they are.
            inner = name.split(".") if is_options else [name]
            yield from _assignments(config_type, (*path, *inner), value)
    else:
        yield path, _convert(node, hint, key)


def _convert(node: yaml.Node, hint: Any, key: str) -> Any:
    """Turn a YAML node into the plain value that an option of type `hint` is built from."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    kinds = arguments if origin is types.UnionType else (hint,)
    item_type = next((typing.get_args(each)[0] for each in kinds if typing.get_origin(each) is list), None)
    if isinstance(node, yaml.ScalarNode):
        if types.NoneType in arguments and node.tag == NULL_TAG:
            return None
        if hint in (*TEXT_TYPES, TEXTS_TYPE) or (origin is types.UnionType and str in arguments and node.tag != INT_TAG):
            return _literal(node.value, key)
        if origin not in (list, dict) and not dataclasses.is_dataclass(hint) and not _misleads(node, hint):
            # A tag or a date that YAML cannot build is a wrong value like any other.
            with contextlib.suppress(yaml.YAMLError, ValueError):
                value = yaml.SafeLoader("").construct_object(node)
                if not isinstance(value, str) or _literal(value, key) == value:
                    return value
    elif isinstance(node, yaml.SequenceNode) and hint == TEXTS_TYPE and any("${" in str(item.value) for item in node.value):
        raise ConfigError(f"{key}: got a list with '${{'; allowed: such a text alone")  # OmegaConf knows no escape for it there
    elif isinstance(node, yaml.SequenceNode) and item_type is not None:
        return [_convert(item, item_type, f"{key}[{index}]") for index, item in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode) and origin is dict:
        return {name: _convert(item, arguments[1], f"{key}.{name}") for name, item in _pairs(node, key)}
    elif isinstance(node, yaml.MappingNode) and dataclasses.is_dataclass(hint):
        inner = typing.cast(type[Any], hint)
        return {name: _convert(item, _field_type(inner, name, key), f"{key}.{name}") for name, item in _pairs(node, key)}
    raise ConfigError(f"{key}: got {_source(node)}; allowed: {describe_type(hint)}")


def _misleads(node: yaml.ScalarNode, hint: Any) -> bool:
    """Whether a text is a number, but not the one that it looks like."""
    return hint is not bool and not node.style and OTHER_BASES.fullmatch(node.value) is not None


def _field_type(config_type: type[Any], name: str, key: str) -> Any:
    hints = field_types(config_type)
    if name not in hints:
        raise ConfigError(f"{key}: got an unknown key {name!r}; allowed: {', '.join(hints)}")
    return hints[name]


def _pairs(node: yaml.MappingNode, key: str) -> Iterator[tuple[str, yaml.Node]]:
    seen: set[str] = set()
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode) or name.value in seen:
            got = f"{name.value!r} twice" if isinstance(name, yaml.ScalarNode) else "a key that is not text"
            raise ConfigError(f"{key}: got {got}; allowed: every key once, as plain text")
        seen.add(name.value)
        yield name.value, value


def _source(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return cut(repr(node.value), SHOWN_CHARACTERS)
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _literal(text: str, key: str) -> str:
    """Escape what OmegaConf would read as an interpolation or a missing value, so that the text comes back as it stood."""
    check_text(text, key)
    if MISSING.fullmatch(text):
        return f"\\{text}"
    return re.sub(r"(\\*)\$\{", lambda match: f"{match[1] * 2}\\${{", text)


def check_text(text: str, key: str) -> None:
    """Refuse what no file name and no prompt can hold: bytes that are no UTF-8 (Python shows them as surrogates), and NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{key}: got {cut(repr(text), SHOWN_CHARACTERS)}, which is no UTF-8; allowed: UTF-8 text") from None
    if "\0" in text:
        raise ConfigError(f"{key}: got {cut(repr(text), SHOWN_CHARACTERS)}; allowed: text without NUL")


def compose_yaml(text: str) -> yaml.Node | None:
    """Parse YAML into nodes. Raises: yaml.YAMLError."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def parse_blend_words(text: str) -> tuple[BlendPhrase, ...]:
    """Read `cat dog` or `[{source: ..., target: ...}]`; a null side is None.

    Raises: ConfigError for another form.
    """
    from vimaedit.words.phrases import parse_blend

    try:
        return parse_blend(_read_phrases(text) if text.lstrip().startswith("[") else text)
    except RequestError as error:
        raise ConfigError(str(error)) from error


def _read_phrases(text: str) -> list[dict[str, str | None]]:
    error = ConfigError(f"blend_words: got {text!r}; allowed: two words, or [{{source: PHRASE, target: PHRASE}}, ...]")
    try:
        node = compose_yaml(text)
    except yaml.YAMLError as cause:
        raise error from cause
    phrases: list[dict[str, str | None]] = []
    for entry in node.value if isinstance(node, yaml.SequenceNode) else [None]:
        pairs = entry.value if isinstance(entry, yaml.MappingNode) else []
        if not all(isinstance(side, yaml.ScalarNode) for pair in pairs for side in pair):
            raise error
        # The nodes' own text, so that a phrase may be `no` or `7`.
        sides = {side.value: None if phrase.tag == NULL_TAG else phrase.value for side, phrase in pairs}
        if not sides or not sides.keys() <= {"source", "target"}:
            raise error
        phrases.append(sides)
    return phrases


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())
