"""Weights of the networks that metrics look through: found locally or on the hub, read as plain tensors."""

from __future__ import annotations

import importlib.util
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimaedit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+)?")
TENSOR_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
HUB_WEIGHTS = ("*.safetensors", "*.bin", "*.pth")  # the first of these that a repository has is fetched
CONFIG_PATTERNS = ("*.json", "*.txt")
# Installed packages that carry the linear heads of LPIPS, and where.
HEAD_PACKAGES = {"torchmetrics": "functional/image/lpips_models/squeeze.pth", "lpips": "weights/v0.1/squeeze.pth"}


def find_weights(option: str, name: str) -> Path:
    """Return the local file or folder that an option names; what is no local path is taken for a hub id and fetched.

    Raises: ConfigError naming the option, also where the hub cannot be reached.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if path.is_absolute() or not HUB_ID.fullmatch(name):
        raise ConfigError(
            f"{option}: got {name!r}, which is no file or folder here; allowed: a local path, or a hub id like owner/name"
        )
    from huggingface_hub import snapshot_download

    owner, repo, *file = name.split("/", 2)
    try:
        for pattern in file or HUB_WEIGHTS:
            folder = Path(snapshot_download(f"{owner}/{repo}", allow_patterns=[pattern, *CONFIG_PATTERNS]))
            if any(folder.glob(pattern)):
                return folder / file[0] if file else folder
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{option}: got the hub id {name!r}, which cannot be had: {reason}") from error
    raise ConfigError(f"{option}: got the hub id {name!r}, where there is no {' or '.join(file or HUB_WEIGHTS)}")


def weights_file(option: str, path: Path) -> Path:
    """Return the one file of tensors that a path means: itself, or the only one of a folder, safetensors before pickles.

    Raises: ConfigError for a folder with none or several.
    """
    if path.is_file():
        return path
    for suffix in TENSOR_SUFFIXES:
        found = sorted(path.glob(f"*{suffix}"))
        if len(found) == 1:
            return found[0]
        if found:
            break
    raise ConfigError(
        f"{option}: got {str(path)!r}, which holds {len(found)} weight files; allowed: one ({', '.join(TENSOR_SUFFIXES)}), or the "
        "path of one"
    )


def read_tensors(option: str, path: Path) -> dict[str, Tensor]:
    """Read a file of tensors by name, in float32 on the CPU: safetensors, a torch pickle of tensors only, or npz.

    Raises: ConfigError for a file that is none of these.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        elif path.suffix == ".npz":
            import numpy as np

            with np.load(path, allow_pickle=False) as file:
                content = {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind == "f"}
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format's reader stumbles in its own way
        reason = str(error).strip().split("\n")[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than tensors"
        raise ConfigError(
            f"{option}: got {str(path)!r}, which cannot be read: {reason}; allowed: {', '.join(TENSOR_SUFFIXES)} of tensors"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{option}: got {str(path)!r}, which holds a {type(content).__name__}; allowed: tensors by name")
    nested = next((content[key] for key in ("teacher", "state_dict", "model") if isinstance(content.get(key), dict)), content)
    return {str(key): value.float() for key, value in nested.items() if isinstance(value, torch.Tensor)}


def installed_heads() -> Path | None:
    """Return the file of LPIPS heads that an installed package carries; None where there is none. Nothing is imported."""
    for package, file in HEAD_PACKAGES.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            if (path := Path(folder) / file).is_file():
                return path
    return None
