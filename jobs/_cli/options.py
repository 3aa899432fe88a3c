"""Command line and YAML file -> one frozen dataclass: defaults <- the model's recipe <- YAML <- key=value.

Text options are taken literally wherever they come from: prompts contain `#`, `:`, `[`, `no`, `$`. Every other type is read
by YAML's rules. The dataclass checks ranges and choices itself when it is built.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.store.text import cut, without_secrets
from vimaedit.config import EditConfig
from vimaedit.errors import ConfigError

USAGE = "key=value ... [--config FILE.yaml] [--print-config] [--help]"
NULL_TAG = "tag:yaml.org,2002:null"
INT_TAG = "tag:yaml.org,2002:int"
TEXT_TYPES = (str, str | None)
TYPE_NAMES = {int: "integer", float: "number", bool: "true or false", str: "text"}
MISSING = re.compile(r"\\*\?\?\?")  # OmegaConf's sign for a missing value, perhaps with backslashes before it
SHOWN_CHARACTERS = 200

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """The words of a command line, sorted but not yet understood."""

    values: Mapping[str, str]
    config_file: Path | None
    print_config: bool
    help: bool


def parse_command_line(words: Sequence[str]) -> CommandLine:
    """Sort words into flags and key=value pairs; the last value of a key counts.

    Raises: ConfigError for any other word.
    """
    values: dict[str, str] = {}
    config_file: Path | None = None
    flags = {"--print-config": False, "--help": False}
    rest = iter(words)
    for word in rest:
        _check_text(word, "command line")
        key, equals, value = word.partition("=")
        if word == "--config":
            file = next(rest, None)
            if file is None or config_file is not None:
                raise ConfigError(
                    f"--config: got {'nothing' if file is None else 'two files'}; allowed: --config FILE.yaml, once"
                )
            config_file = Path(file)
        elif word in flags:
            flags[word] = True
        elif equals and key and not key.startswith("-"):
            values[key] = value
        else:
            raise ConfigError(f"command line: got {cut(word, SHOWN_CHARACTERS)!r}; allowed: {USAGE}")
    return CommandLine(values=values, config_file=config_file, print_config=flags["--print-config"], help=flags["--help"])


def load_config(config_type: type[Config], line: CommandLine, required: Sequence[str]) -> Config:
    """Build the job's dataclass from its defaults, the model's recipe, the YAML file and the command line, in this order.

    Raises: ConfigError for an unknown key (with a suggestion), a wrong type, a missing key, or what the dataclass refuses.
    """
    assignments = list(_file_assignments(config_type, line.config_file)) if line.config_file else []
    for key, text in line.values.items():
        assignments += _command_assignments(config_type, key, text)
    given = {path for path, _ in assignments}
    if missing := [key for key in required if (key,) not in given]:
        raise ConfigError(f"{', '.join(missing)}: got nothing; required: {' '.join(f'{key}=...' for key in required)}")
    config = OmegaConf.structured(config_type)
    for path, value in [*_recipe_assignments(config_type, assignments), *assignments]:
        tree = value
        for part in reversed(path):
            tree = {part: tree}
        try:
            config = OmegaConf.merge(config, tree)
        except OmegaConfBaseException as error:
            allowed = describe_type(_option_type(config_type, path))
            got = cut(repr(value), SHOWN_CHARACTERS)
            raise ConfigError(f"{'.'.join(path)}: got {got}; allowed: {allowed}") from error
    return typing.cast(Config, OmegaConf.to_object(config))


def _recipe_assignments(
    config_type: type[Any], assignments: Sequence[tuple[tuple[str, ...], Any]]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield what the chosen model states of itself and what the chosen method is published with, for jobs whose options are an edit's."""
    hints = _hints(config_type)
    if "model" not in hints or not issubclass(config_type, EditConfig):
        return
    from pipelines.cluster.weights import stated_recipe  # takes time to import, and not every job has a model
    from vimaedit.recipes import recipe_of

    default = next(field.default for field in dataclasses.fields(config_type) if field.name == "model")
    given = {path: value for path, value in assignments}
    stated = stated_recipe(given.get(("model",), default))
    for key, value in recipe_of(stated, given.get(("method",))).items() if hints.get("method") is str else stated.items():
        for inner, each in value.items() if isinstance(value, dict) else [("", value)]:
            path = (key, inner) if inner else (key,)
            _option_type(config_type, path)
            yield path, each


def with_option(config: Config, key: str, text: str) -> Config:
    """Return a copy with one option, a nested one by dots, read from its text as on a command line.

    Another method brings its own published options along, save those that were chosen otherwise.

    Raises: ConfigError as `load_config`.
    """
    if key == "method" and dataclasses.is_dataclass(config):
        from pipelines.cluster.weights import stated_recipe
        from vimaedit.recipes import with_method

        edit = typing.cast(Any, config)
        return typing.cast(Config, with_method(edit, text, stated_recipe(edit.model)))
    for path, value in _command_assignments(type(config), key, text):
        config = _replace(config, path, value)
    return config


def _replace(config: Any, path: Sequence[str], value: Any) -> Any:
    name, *rest = path
    return dataclasses.replace(config, **{name: _replace(getattr(config, name), rest, value) if rest else value})


def config_yaml(config: Any, first: Sequence[str] = ()) -> str:
    """Return a resolved configuration as YAML that `--config` reads back, some keys first, with credentials in URLs as `***`."""
    values = dataclasses.asdict(config)
    ordered = {name: values[name] for name in (*first, *(name for name in values if name not in first))}
    return yaml.safe_dump(without_secrets(ordered), sort_keys=False, allow_unicode=True, width=128)


def option_keys(config_type: type[Any]) -> Iterator[tuple[str, ...]]:
    """Yield the path of every option, nested ones one by one."""
    for name, hint in _hints(config_type).items():
        if dataclasses.is_dataclass(hint):
            for path in option_keys(typing.cast(type[Any], hint)):
                yield name, *path
        else:
            yield (name,)


def describe_type(hint: Any) -> str:
    """Say in words what an option of this type may be."""
    if hint in TYPE_NAMES:
        return TYPE_NAMES[hint]
    if dataclasses.is_dataclass(hint):
        inner = ", ".join(f"{name}: {describe_type(kind)}" for name, kind in _hints(typing.cast(type[Any], hint)).items())
        return f"{{{inner}}}"
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return f"list of {describe_type(arguments[0])}"
    if typing.get_origin(hint) is dict:
        return f"mapping of {describe_type(arguments[0])} to {describe_type(arguments[1])}"
    return " or ".join("null" if kind is types.NoneType else describe_type(kind) for kind in arguments)


def _hints(config_type: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(config_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_type)}


def _option_type(config_type: type[Any], path: Sequence[str]) -> Any:
    """Return the type of the option at `path`. Raises: ConfigError with a suggestion where there is none."""
    hint: Any = config_type
    for depth, part in enumerate(path):
        if typing.get_origin(hint) is dict:  # any name may stand in a mapping
            hint = typing.get_args(hint)[1]
            continue
        hints = _hints(typing.cast(type[Any], hint)) if dataclasses.is_dataclass(hint) else {}
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


def _file_assignments(config_type: type[Any], file: Path) -> Iterator[tuple[tuple[str, ...], Any]]:
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
    yield from _mapping_assignments(config_type, (), node)


def _mapping_assignments(
    config_type: type[Any], prefix: tuple[str, ...], node: yaml.MappingNode
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in _pairs(node, ".".join(prefix) or "--config"):
        path = (*prefix, *key.split("."))
        hint = _option_type(config_type, path)
        if dataclasses.is_dataclass(hint) and isinstance(value, yaml.MappingNode):
            yield from _mapping_assignments(config_type, path, value)
        else:
            yield path, _convert(value, hint, ".".join(path))


def _command_assignments(config_type: type[Any], key: str, text: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    path = tuple(key.split("."))
    hint = _option_type(config_type, path)
    if hint in TEXT_TYPES:
        # Nothing after the equals sign unsets an optional text, since the word null is text like any other.
        yield path, None if not text and hint is not str else _literal(text, key)
        return
    try:
        node = compose_yaml(text) or yaml.ScalarNode(NULL_TAG, "")
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{key}: got {cut(repr(text), SHOWN_CHARACTERS)}, which is not YAML ({_one_line(error)}); allowed: {describe_type(hint)}"
        ) from error
    if dataclasses.is_dataclass(hint) and isinstance(node, yaml.MappingNode):
        yield from _mapping_assignments(config_type, path, node)
    else:
        yield path, _convert(node, hint, key)


def _convert(node: yaml.Node, hint: Any, key: str) -> Any:
    """Turn a YAML node into the plain value that an option of type `hint` is built from."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if isinstance(node, yaml.ScalarNode):
        if types.NoneType in arguments and node.tag == NULL_TAG:
            return None
        if hint in TEXT_TYPES or (origin is types.UnionType and str in arguments and node.tag != INT_TAG):
            return _literal(node.value, key)
        if origin not in (list, dict) and not dataclasses.is_dataclass(hint):
            # A tag or a date that YAML cannot build is a wrong value like any other.
            with contextlib.suppress(yaml.YAMLError, ValueError):
                return yaml.SafeLoader("").construct_object(node)
    elif isinstance(node, yaml.SequenceNode) and origin is list:
        return [_convert(item, arguments[0], f"{key}[{index}]") for index, item in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode) and origin is dict:
        return {name: _convert(item, arguments[1], f"{key}.{name}") for name, item in _pairs(node, key)}
    elif isinstance(node, yaml.MappingNode) and dataclasses.is_dataclass(hint):
        inner = typing.cast(type[Any], hint)
        return {name: _convert(item, _field_type(inner, name, key), f"{key}.{name}") for name, item in _pairs(node, key)}
    raise ConfigError(f"{key}: got {_source(node)}; allowed: {describe_type(hint)}")


def _field_type(config_type: type[Any], name: str, key: str) -> Any:
    hints = _hints(config_type)
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
    _check_text(text, key)
    if MISSING.fullmatch(text):
        return f"\\{text}"
    return re.sub(r"(\\*)\$\{", lambda match: f"{match[1] * 2}\\${{", text)


def _check_text(text: str, key: str) -> None:
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


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())
