"""What an option names: a file or folder here, or a repository of the hub. What reads as a path is never taken for a hub id."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from vimaedit.errors import ConfigError

logger = logging.getLogger(__name__)

DRAWN = ("random", "random-xl", "random-sd3", "random-flux")  # weights are drawn at first use
BUILT_IN = ("miniature", *DRAWN)
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(/\w[\w./-]*)?")
FILE_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pth", ".pt", ".npz", ".json")


def local_path(name: str) -> Path:
    """Return the path that a name is, where it is one; `~` is the home folder."""
    return Path(name).expanduser()


def absolute_name(name: str) -> str:
    """Return a name that means the same whatever the current folder is; built-in names, URLs and hub ids stay as they are."""
    if name in BUILT_IN or "://" in name:
        return name
    path = local_path(name)
    return os.path.abspath(path) if _reads_as_path(name) or path.exists() else name


def split_hub_id(option: str, name: str, *, allowed: str = "a local path, or a hub id like owner/name") -> tuple[str, str]:
    """Return the repository and the file in it ("" where none is named) of what is no file or folder here.

    Raises: ConfigError for a name that is no hub id, or that reads as the path of something that is not there.
    """
    if not HUB_ID.fullmatch(name) or _reads_as_path(name):
        raise ConfigError(f"{option}: got {name!r}, which is no file or folder here; allowed: {allowed}")
    owner, repo, *rest = name.split("/", 2)
    if Path(owner).is_dir():
        raise ConfigError(
            f"{option}: got {name!r}, which is no file or folder here, though there is a folder {owner!r}; allowed: {allowed}, where no "
            "folder here has its owner's name"
        )
    logger.info("%s: %r is no file or folder here, so it is taken for a hub id", option, name)
    return f"{owner}/{repo}", rest[0] if rest else ""


def download(repository: str, option: str, revision: str | None, patterns: list[str]) -> Path:
    """Fetch the files of a repository whose names fit the patterns, from its cache where they are; return their folder.

    Raises: ConfigError where it cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{option}: got the hub id {repository!r}, which cannot be had: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Return what an error says first."""
    return str(error).strip().split("\n")[0]


def _reads_as_path(name: str) -> bool:
    """Whether a name can only be meant as a path: absolute, relative to here or home, or a weight file without a repository."""
    if name.startswith(("/", ".", "~")) or "\\" in name:
        return True
    return name.count("/") < 2 and name.endswith(FILE_SUFFIXES)
