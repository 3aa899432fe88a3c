"""Command line and YAML file -> one frozen dataclass: defaults <- the model's recipe <- YAML <- key=value.

The dataclass checks ranges and choices itself when it is built.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jobs._cli.fields import TEXTS_TYPE, describe_type, field_types, option_keys, option_type
from jobs._cli.values import (
    SHOWN_CHARACTERS,
    Assignment,
    check_once,
    check_text,
    command_assignments,
    file_assignments,
    recipe_assignments,
)
from pipelines.store.masking import cut, refuse_credentials, without_secrets
from vimaedit.config import EditConfig
from vimaedit.errors import ConfigError

USAGE = "key=value ... [--config FILE.yaml] [--print-config] [--help]"

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """The words of a command line, sorted but not yet understood."""

    values: Mapping[str, str]
    config_file: Path | None
    print_config: bool
    help: bool


def parse_command_line(words: Sequence[str]) -> CommandLine:
    """Sort words into flags and key=value pairs.

    Raises: ConfigError for any other word, and for a key that is given twice.
    """
    values: dict[str, str] = {}
    config_file: Path | None = None
    flags = {"--print-config": False, "--help": False}
    rest = iter(words)
    for word in rest:
        check_text(word, "command line")
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
            if key in values:  # what a shell makes of input={a,b}.parquet
                raise ConfigError(f"{key}: got it twice; allowed: once")
            values[key] = value
        else:
            raise ConfigError(f"command line: got {cut(word, SHOWN_CHARACTERS)!r}; allowed: {USAGE}")
    return CommandLine(values=values, config_file=config_file, print_config=flags["--print-config"], help=flags["--help"])


def load_config(config_type: type[Config], line: CommandLine, required: Sequence[str]) -> Config:
    """Build the job's dataclass from its defaults, the model's recipe, the YAML file and the command line, in this order.

    Raises: ConfigError for an unknown key (with a suggestion), a wrong type, a missing key, or what the dataclass refuses.
    """
    in_file = check_once(list(file_assignments(config_type, line.config_file))) if line.config_file else []
    in_words = [each for key, text in line.values.items() for each in command_assignments(config_type, key, text)]
    given = [*in_file, *check_once(in_words)]
    if missing := [key for key in required if (key,) not in dict(given)]:
        raise ConfigError(f"{', '.join(missing)}: got nothing; required: {' '.join(f'{key}=...' for key in required)}")
    for path, value in given:  # before anything is asked of a store
        for text in value if isinstance(value, list) and option_type(config_type, path) == TEXTS_TYPE else [value]:
            if isinstance(text, str):
                try:
                    refuse_credentials(text)
                except ConfigError as error:
                    raise ConfigError(f"{'.'.join(path)}: {error}") from None
    config = OmegaConf.structured(config_type)
    for path, value in [*_stated(config_type, dict(given)), *given]:
        tree = value
        for part in reversed(path):
            tree = {part: tree}
        try:
            config = OmegaConf.unsafe_merge(config, tree)  # without a copy of the whole for every option
        except OmegaConfBaseException as error:
            allowed = describe_type(option_type(config_type, path))
            got = cut(repr(value), SHOWN_CHARACTERS)
            raise ConfigError(f"{'.'.join(path)}: got {got}; allowed: {allowed}") from error
    return typing.cast(Config, OmegaConf.to_object(config))


def _stated(config_type: type[Any], given: Mapping[tuple[str, ...], Any]) -> Iterator[Assignment]:
    """Yield what the chosen model states of itself and what the chosen method is published with, for jobs whose options are an edit's.

    Raises: ConfigError for a recipe with anything else than options of an edit: whoever wrote the model has no say in the rest.
    """
    hints = field_types(config_type)
    if "model" not in hints or not issubclass(config_type, EditConfig):
        return
    from pipelines.cluster.weights import stated_recipe  # takes time to import, and not every job has a model
    from vimaedit.recipes import recipe_of

    default = next(field.default for field in dataclasses.fields(config_type) if field.name == "model")
    stated = stated_recipe(given.get(("model",), default))
    recipe = recipe_of(stated, given.get(("method",))) if hints.get("method") is str else stated
    for key in recipe:
        if key.partition(".")[0] not in field_types(EditConfig):
            raise ConfigError(f"{key}: got an unknown key in the recipe of the model; allowed: options of an edit")
    yield from recipe_assignments(config_type, recipe)


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
    for path, value in command_assignments(type(config), key, text):
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


__all__ = [
    "USAGE",
    "CommandLine",
    "config_yaml",
    "describe_type",
    "load_config",
    "option_keys",
    "parse_command_line",
    "with_option",
]
