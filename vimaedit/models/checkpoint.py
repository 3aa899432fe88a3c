"""A single checkpoint file: all networks of a model in one file, by the names of the original programs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from vimaedit.models.adapters import read_weights
from vimaedit.models.family import checkpoint_names, pipeline_class, without_extras
from vimaedit.models.files import ModelFiles
from vimaedit.models.losses import check_whole, left_out, unreached
from vimaedit.models.stated import loading
from vimaedit.types import LeftOut

# Of text encoders: positions, which count up and are made anew, and CLIP's temperature, which only training needs.
UNREAD = ("position_ids", "logit_scale")
IN_ONE, TRANSPOSED, PART = re.compile(r"\.attn\.in_proj_(weight|bias)$"), ".text_projection", "#"
# Noise levels, which training keeps beside the networks and edits take from the configs.
LEVELS = re.compile(r"(betas|logvar|scale_factor|(sqrt_|log_|posterior_|one_minus_|alphas_)\w+|cumprod\w*|denoiser\.sigmas)")


def load_checkpoint(files: ModelFiles, dtype: torch.dtype) -> tuple[Any, tuple[LeftOut, ...]]:
    """Load a pipeline from a checkpoint file; return it and what of the file is not used.

    Raises: ConfigError for one that does not load, or lacks some of the networks' weights.
    """
    assert files.checkpoint is not None
    options: dict[str, Any] = {**without_extras(files.family), "local_files_only": True, "dtype": dtype}
    with loading("model", files.name, files.checkpoint):
        pipe = pipeline_class(files.family).from_single_file(str(files.checkpoint), config=str(files.diffusers), **options)
    networks = {name: getattr(pipe, name) for name in files.family.weights}
    for name, network in networks.items():
        tensors = network.state_dict()
        # What a file lacks is left without numbers.
        check_whole(
            "model", f"the {name} of {files.name!r}", [key for key, value in tensors.items() if value.is_meta], len(tensors)
        )
    total, beside, within = _names(files.checkpoint, checkpoint_names(files.family))
    if len(within) != sum(len(network.state_dict()) for network in networks.values()):
        # The library passes over what it does not know; what it took is told by its numbers.
        content = _content(files.checkpoint)
        loaded = [tensor for network in networks.values() for tensor in network.state_dict().values()]
        beside += dict.fromkeys(key.partition(PART)[0] for key in unreached(_as_loaded(content, within), loaded, dtype))
    reason = f"the {files.family.title} layout has no use for them"
    return pipe, left_out(f"tensors of {files.checkpoint.name}", beside, total, reason)


def _names(path: Path, networks: tuple[str, ...]) -> tuple[int, list[str], list[str]]:
    """Return how many tensors a file has, which of them are of none of the networks, and which are."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    else:
        names = [key for key, value in _content(path).items() if isinstance(value, torch.Tensor)]
    within = [name for name in names if name.startswith(networks)]
    beside = [name for name in names if not name.startswith(networks) and not LEVELS.fullmatch(name)]
    return len(names), beside, [name for name in within if not name.endswith(UNREAD)]


def _as_loaded(content: dict[str, Any], names: list[str]) -> dict[str, torch.Tensor]:
    """Return tensors as diffusers loads them: OpenCLIP has queries, keys and values in one, and its projection the other way round."""
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        if IN_ONE.search(name):
            tensors |= {f"{name}{PART}{number}": part for number, part in enumerate(content[name].chunk(3))}
        else:
            tensors[name] = content[name].T if name.endswith(TRANSPOSED) else content[name]
    return tensors


def _content(path: Path) -> dict[str, Any]:
    content = read_weights("model", path)
    inner = content.get("state_dict")
    return inner if isinstance(inner, dict) else content
