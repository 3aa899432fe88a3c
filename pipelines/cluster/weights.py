"""Weights that lie in object storage: one local copy per node, whoever asks first makes it."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from pipelines.options import Networks
from pipelines.store.location import Location, list_files, locate, retry
from pipelines.store.masking import mask_urls
from vimaedit.config import Lora, ModelConfig
from vimaedit.errors import ConfigError, shown
from vimaedit.models.files import BUNDLE_FILE, bundle_recipe, check_bundle
from vimaedit.models.names import absolute_name

CACHE = Path("~/.cache/vimaedit/weights")
MODEL_OPTIONS = ("model", "ip_adapter", "clip", "model_config")

NETWORK_OPTIONS = tuple(each.name for each in dataclasses.fields(Networks))

Config = TypeVar("Config", bound=ModelConfig)
Settings = TypeVar("Settings")


def with_local_weights(config: Config) -> Config:
    """Replace every URL among the options of a model by the path of its copy on this node.

    Raises: ConfigError for a URL where there is nothing.
    """
    copies: dict[str, Any] = {
        name: local_copy(name, value)
        for name in MODEL_OPTIONS
        if isinstance(value := getattr(config, name), str) and "://" in value
    }
    loras = [
        Lora(path=local_copy("lora", lora.path) if "://" in lora.path else lora.path, scale=lora.scale) for lora in config.lora
    ]
    return dataclasses.replace(config, lora=loras, **copies)


def with_absolute_names(config: Settings) -> Settings:
    """Replace the paths among the options of a model and of metrics' networks by absolute ones, for a worker's current folder may be
    another."""
    names = MODEL_OPTIONS + NETWORK_OPTIONS
    named: dict[str, Any] = {
        name: absolute_name(value) for name in names if isinstance(value := getattr(config, name, None), str)
    }
    if isinstance(config, ModelConfig):
        named["lora"] = [Lora(path=absolute_name(lora.path), scale=lora.scale) for lora in config.lora]
    judge = getattr(config, "judge", None)
    if judge is not None and judge.url is None and judge.model is not None:
        named["judge"] = dataclasses.replace(judge, model=absolute_name(judge.model))
    named_all = cast(Settings, dataclasses.replace(cast(Any, config), **named))
    return _with_segmenter(named_all, lambda option, name: absolute_name(name))


def local_segmenter(config: Settings) -> Settings:
    """Replace the URLs of a segmenter's networks among the options of an edit by the paths of their copies on this node.

    Raises: ConfigError for a URL where there is nothing.
    """
    return _with_segmenter(config, lambda option, name: local_copy(option, name) if "://" in name else name)


def _with_segmenter(config: Settings, change: Callable[[str, str], str]) -> Settings:
    segmenter = getattr(config, "segmenter", None)
    if segmenter is None:
        return config
    names = {name: change(f"segmenter.{name}", value) for name in ("detector", "model") if (value := getattr(segmenter, name))}
    return cast(Settings, dataclasses.replace(cast(Any, config), segmenter=dataclasses.replace(segmenter, **names)))


def local_copy(option: str, url: str) -> str:
    """Copy a file or folder below a URL to this node, once for each state of it, and return the local path.

    The state is every file's size and version. A copy whose files have other sizes is made again.

    Raises: ConfigError where there is nothing; the infrastructure's errors, after retries.
    """
    place = locate(url)
    if retry(lambda: place.fs.isfile(place.path)):
        name = place.path.rsplit("/", 1)[1]
        files = [(name, int(retry(lambda: place.fs.size(place.path)) or 0))]
        root = dataclasses.replace(place, path=place.path.rsplit("/", 1)[0])
    else:
        name, files, root = "", list_files(place), place
    if not files:
        raise ConfigError(
            f"{option}: got {mask_urls(url)!r}, where there is no file; allowed: the URL of a model file or folder"
        )
    state = [(path, size, _version(root / path)) for path, size in files]
    key = hashlib.blake2b(repr((url, state)).encode(), digest_size=12).hexdigest()
    cache = CACHE.expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / key
    with (cache / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all(_size_of(target / path) == size for path, size in files):
            shutil.rmtree(target, ignore_errors=True)
            partial = cache / f".{key}.{uuid.uuid4().hex}"
            try:
                for path, size in files:
                    retry(functools.partial(_fetch, root / path, partial / path, size))
                os.replace(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return str(target / name) if name else str(target)


def stated_recipe(model: str) -> dict[str, Any]:
    """Return the options that a model's bundle states as its own, wherever it lies; nothing but the bundle's JSON is fetched.

    Raises: ConfigError where that is no JSON; the infrastructure's errors, after retries.
    """
    if "://" not in model:
        return bundle_recipe(model)
    place = locate(model) / BUNDLE_FILE
    try:
        content = json.loads(retry(lambda: place.fs.cat_file(place.path)))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"model: got {mask_urls(model)!r}, whose {BUNDLE_FILE} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"model: got {mask_urls(model)!r}, whose {BUNDLE_FILE} holds {shown(content)}; allowed: a JSON object"
        )
    recipe: dict[str, Any] = check_bundle(Path(mask_urls(place.path)), content).get("recipe", {})
    return recipe


def _fetch(source: Location, destination: Path, size: int) -> None:
    """Copy one file.

    Raises: ConnectionError, which is worth another try, where less or more of it has come than there is.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    source.fs.get_file(source.path, str(destination))
    got = _size_of(destination)
    if got != size:
        raise ConnectionError(f"{mask_urls(source.url)}: got {got} of {size} bytes")


def _size_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _version(file: Location) -> str:
    facts: dict[str, object] = retry(lambda: file.fs.info(file.path))
    return str(
        facts.get("ETag") or facts.get("etag") or facts.get("md5Hash") or facts.get("LastModified") or facts.get("mtime")
    )
