"""Weights of the networks that metrics look through: found locally or on the hub, read as plain tensors."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimaedit.errors import ConfigError, WrongWeights
from vimaedit.models.losses import check_finite, check_whole
from vimaedit.models.names import local_path, split_hub_id

if TYPE_CHECKING:
    from torch import Tensor

TENSOR_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
HUB_WEIGHTS = ("*.safetensors", "*.bin", "*.pth")  # the first of these that a repository has is fetched
CONFIG_PATTERNS = ("*.json", "*.txt")
# Installed packages that carry the linear heads of LPIPS, and where.
HEAD_PACKAGES = {"torchmetrics": "functional/image/lpips_models/squeeze.pth", "lpips": "weights/v0.1/squeeze.pth"}


def find_weights(option: str, name: str) -> Path:
    """Return the local file or folder that an option names; what is no local path is taken for a hub id and fetched.

    Raises: ConfigError naming the option, also where the hub cannot be reached.
    """
    path = local_path(name)
    if path.exists():
        return path
    repository, file = split_hub_id(option, name)
    from huggingface_hub import snapshot_download

    try:
        for pattern in [file] if file else HUB_WEIGHTS:
            folder = Path(snapshot_download(repository, allow_patterns=[pattern, *CONFIG_PATTERNS]))
            if any(folder.glob(pattern)):
                return folder / file if file else folder
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{option}: got the hub id {name!r}, which cannot be had: {reason}") from error
    raise ConfigError(f"{option}: got the hub id {name!r}, where there is no {file or ' or '.join(HUB_WEIGHTS)}")


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
        raise WrongWeights(
            f"{option}: got {str(path)!r}, which cannot be read: {reason}; allowed: {', '.join(TENSOR_SUFFIXES)} of tensors"
        ) from error
    if not isinstance(content, dict):
        raise WrongWeights(f"{option}: got {str(path)!r}, which holds a {type(content).__name__}; allowed: tensors by name")
    nested = next((content[key] for key in ("teacher", "state_dict", "model") if isinstance(content.get(key), dict)), content)
    return {str(key): value.float() for key, value in nested.items() if isinstance(value, torch.Tensor)}


def wanted_tensors(option: str, path: Path, tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors that a network needs of a file.

    Raises: WrongWeights where some are missing or not finite, with the counts and three names.
    """
    names = list(wanted)
    check_whole(option, repr(str(path)), [name for name in names if name not in tensors], len(names))
    found = {name: tensors[name] for name in names}
    check_finite(option, repr(str(path)), found)
    return found


def installed_heads() -> Path | None:
    """Return the file of LPIPS heads that an installed package carries; None where there is none. Nothing is imported."""
    for package, file in HEAD_PACKAGES.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            if (path := Path(folder) / file).is_file():
                return path
    return None
