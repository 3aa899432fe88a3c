"""Weights that lie in object storage: one local copy per node, whoever asks first makes it."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from pipelines.config import EditJobConfig
from pipelines.secrets import mask_urls
from pipelines.storage import list_files, locate, retry
from vimaedit.config import Lora
from vimaedit.errors import ConfigError
from vimaedit.loading import BUNDLE_FILE, bundle_recipe

CACHE = Path("~/.cache/vimaedit/weights")
MODEL_OPTIONS = ("model", "ip_adapter", "clip", "model_config")


def with_local_weights(job: EditJobConfig) -> EditJobConfig:
    """Replace every URL among the model options by the path of its copy on this node.

    Raises: ConfigError for a URL where there is nothing.
    """
    copies: dict[str, Any] = {
        name: local_copy(name, value)
        for name in MODEL_OPTIONS
        if isinstance(value := getattr(job, name), str) and "://" in value
    }
    loras = [
        Lora(path=local_copy("lora", lora.path) if "://" in lora.path else lora.path, scale=lora.scale) for lora in job.lora
    ]
    return dataclasses.replace(job, lora=loras, **copies)


def local_copy(option: str, url: str) -> str:
    """Copy a file or folder below a URL to this node, once for each state of it, and return the local path."""
    place = locate(url)
    if retry(lambda: place.fs.isfile(place.path)):
        name = place.path.rsplit("/", 1)[1]
        files = [(name, int(place.fs.size(place.path) or 0))]
        root = dataclasses.replace(place, path=place.path.rsplit("/", 1)[0])
    else:
        name, files, root = "", list_files(place), place
    if not files:
        raise ConfigError(
            f"{option}: got {mask_urls(url)!r}, where there is no file; allowed: the URL of a model file or folder"
        )
    state = [(path, size, _version(place.fs.info((root / path).path))) for path, size in files]
    key = hashlib.blake2b(repr((url, state)).encode(), digest_size=12).hexdigest()
    cache = CACHE.expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / key
    with (cache / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = cache / f".{key}.{uuid.uuid4().hex}"
            try:
                for path, _ in files:
                    destination = partial / path
                    destination.parent.mkdir(parents=True, exist_ok=True)
                    source = (root / path).path
                    retry(lambda source=source, destination=destination: place.fs.get_file(source, str(destination)))  # type: ignore[misc]
                os.replace(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return str(target / name) if name else str(target)


def stated_recipe(model: str) -> dict[str, Any]:
    """Return the options that a model's bundle states as its own, wherever it lies; nothing but the bundle's JSON is fetched.

    Raises: ConfigError where that cannot be read.
    """
    if "://" not in model:
        return bundle_recipe(model)
    place = locate(model) / BUNDLE_FILE
    try:
        text = retry(lambda: place.fs.cat_file(place.path))
        recipe: dict[str, Any] = json.loads(text).get("recipe", {})
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: got {mask_urls(model)!r}, whose {BUNDLE_FILE} cannot be read ({error})") from error
    return recipe


def _version(facts: dict[str, object]) -> str:
    return str(
        facts.get("ETag") or facts.get("etag") or facts.get("md5Hash") or facts.get("LastModified") or facts.get("mtime")
    )
