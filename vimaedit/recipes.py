"""Options as recipes state them: nested mappings, of a model's bundle or of a method, and the configuration they give."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from vimaedit.checks import check_choice
from vimaedit.config import EditConfig
from vimaedit.methods import METHODS

Recipe = Mapping[str, Any]
Config = TypeVar("Config", bound=EditConfig)


def published_recipe(method: str) -> Recipe:
    """Return the options that a method is published with, its name among them.

    Raises: ConfigError for a method that there is not.
    """
    check_choice("method", method, METHODS)
    return {"method": method, **METHODS[method].defaults}


def merge_recipes(*recipes: Recipe) -> dict[str, Any]:
    """Merge recipes, the later ones before the earlier, nested options one by one."""
    merged: dict[str, Any] = {}
    for recipe in recipes:
        for key, value in recipe.items():
            inner = merged.get(key)
            merged[key] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged


def recipe_of(stated: Recipe, method: str | None = None) -> Recipe:
    """Return the options of a model and a method: what the model states, then what the method is published with, then what the
    model states under `methods` for that method. `method` None: the one that the model states, else ViMAEdit.

    Raises: ConfigError for a method that there is not.
    """
    own = {key: value for key, value in stated.items() if key != "methods"}
    chosen: str = method or own.get("method", "vimaedit")
    return merge_recipes(own, published_recipe(chosen), stated.get("methods", {}).get(chosen, {}))


def config_of(recipe: Recipe) -> EditConfig:
    """Build a configuration from a recipe, everything else at its default.

    Raises: ConfigError for a value that is not allowed; TypeError for an option that there is not.
    """
    hints: dict[str, Any] = typing.get_type_hints(EditConfig)
    values: dict[str, Any] = {}
    for key, value in recipe.items():
        kind = hints.get(key)
        values[key] = kind(**value) if kind is not None and isinstance(value, Mapping) else value
    return EditConfig(**values)


def method_config(method: str, **options: Any) -> EditConfig:
    """Build a method's configuration as published, `options` of `EditConfig` (nested ones as mappings too) instead.

    Raises: ConfigError; TypeError for an option that there is not.
    """
    return config_of(merge_recipes(published_recipe(method), options))


def with_method(config: Config, method: str, stated: Recipe) -> Config:
    """Return a configuration for another method: what is as the method before is published (with what the model states) becomes
    as the new one is; what was chosen otherwise stays.

    Raises: ConfigError.
    """
    before, after = config_of(recipe_of(stated, config.method)), config_of(recipe_of(stated, method))
    names = [field.name for field in dataclasses.fields(EditConfig)]
    return dataclasses.replace(
        config, **{name: _carried(*(getattr(c, name) for c in (config, before, after))) for name in names}
    )


def _carried(own: Any, before: Any, after: Any) -> Any:
    if dataclasses.is_dataclass(own) and not isinstance(own, type):
        names = [field.name for field in dataclasses.fields(own)]
        parts = {name: _carried(getattr(own, name), getattr(before, name), getattr(after, name)) for name in names}
        return dataclasses.replace(own, **parts)
    return after if own == before else own
