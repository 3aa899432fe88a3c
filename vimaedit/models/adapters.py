"""What is loaded onto a model: LoRAs, merged into its weights, and the IP-Adapter. Every tensor of their files reaches a weight, or
is accounted for."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vimaedit.errors import ConfigError, WrongWeights
from vimaedit.models.losses import check_finite, check_whole, left_out, some, unreached
from vimaedit.models.stated import loading
from vimaedit.types import LeftOut

if TYPE_CHECKING:
    from torch import Tensor

    from vimaedit.models.files import ModelFiles

ADAPTER_PARTS = ("image_proj", "ip_adapter")
# What other programs call them.
OTHER_NAMES = {"ip_adapter_proj_model": "image_proj", "double_blocks": "ip_adapter"}
OTHER_LAYERS = (
    ("processor.", ""),
    ("ip_adapter_double_stream_k_proj", "to_k_ip"),
    ("ip_adapter_double_stream_v_proj", "to_v_ip"),
)
PROJECTION = ("norm.bias", "norm.weight", "proj.bias", "proj.weight")  # of the plain kind
# Tensors of the projection that tell an adapter of another kind, and why that kind is refused.
OTHER_KINDS = (
    (r"latents|.*\.latents", "of the plus kind, which reads every patch of a picture, while edits have one embedding of it"),
    (r"proj\.\d+\..*|perceiver_resampler\..*", "of the full or FaceID kind, which reads patches or faces"),
)


def read_weights(option: str, path: Path) -> dict[str, Any]:
    """Read a file of tensors, safetensors or a pickle of tensors only, nested as it is.

    Raises: ConfigError.
    """
    from safetensors.torch import load_file

    with loading(option, str(path), path):
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise WrongWeights(f"{option}: got {str(path)!r}, which holds a {type(content).__name__}; allowed: tensors by name")
        return content


def merge_lora(pipe: Any, files: ModelFiles, path: Path, scale: float) -> tuple[tuple[str, ...], tuple[LeftOut, ...]]:
    """Merge a LoRA into the denoiser and the text encoders. Return the keys of its tensors that reach none of their weights, and their account.

    Raises: ConfigError where none does, or where it does not load.
    """
    given = {key: value for key, value in read_weights("lora", path).items() if isinstance(value, torch.Tensor)}
    check_finite("lora", repr(str(path)), given)
    tensors = {key: value for key, value in given.items() if not key.endswith("alpha")}  # a factor of another tensor
    names = (files.family.denoiser, *(encoder.network for encoder in files.family.text_encoders))
    networks = [getattr(pipe, name) for name in names]
    before = {id(tensor) for network in networks for tensor in network.parameters()}
    with loading("lora", str(path), path):
        pipe.load_lora_weights(str(path.parent), weight_name=path.name)
        loaded = [tensor for network in networks for tensor in network.parameters() if id(tensor) not in before]
        missed = unreached(tensors, loaded, networks[0].dtype)
        if len(missed) == len(tensors):
            raise WrongWeights(
                f"lora: got {str(path)!r}, of which 0 of {len(tensors)} keys reach a weight of this model ({some(missed)}); allowed: a LoRA "
                f"of its {' or '.join(names)}"
            )
        pipe.fuse_lora(components=list(pipe._lora_loadable_modules), lora_scale=scale)
    pipe.unload_lora_weights()
    reason = "they reach no weight of the model"
    return tuple(missed), left_out(f"keys of the LoRA {path.name}", missed, len(tensors), reason)


def load_ip_adapter(pipe: Any, files: ModelFiles, path: Path, clip: Any) -> tuple[LeftOut, ...]:
    """Put an IP-Adapter of the plain kind onto the denoiser. Return what of its file is not used.

    Raises: ConfigError for one of another kind or for another model, and for weights that are not whole.
    """
    parts = _adapter_parts(path, read_weights("ip_adapter", path))
    projection = parts["image_proj"]
    for pattern, reason in OTHER_KINDS:
        if any(re.fullmatch(pattern, key) for key in projection):
            raise ConfigError(f"ip_adapter: got {str(path)!r}, {reason}; allowed: an IP-Adapter of the plain kind")
    wanted = files.family.adapter_tensors(getattr(pipe, files.family.denoiser)) | {f"image_proj.{key}" for key in PROJECTION}
    given = {f"{part}.{key}" for part, tensors in parts.items() for key in tensors}
    name = repr(str(path))
    check_whole("ip_adapter", name, wanted - given, len(wanted))
    check_finite(
        "ip_adapter", name, {f"{part}.{key}": value for part, tensors in parts.items() for key, value in tensors.items()}
    )
    width, allowed = projection["proj.weight"].shape[-1], clip.config.projection_dim
    if width != allowed:
        raise ConfigError(
            f"ip_adapter: got {name}, which takes embeddings of {width} numbers, while clip gives {allowed}; "
            "allowed: an IP-Adapter of the plain kind with the CLIP it was trained on"
        )
    with loading("ip_adapter", str(path), path):
        # No image encoder of its own: it is the vision tower of the CLIP that is loaded beside it.
        pipe.load_ip_adapter(parts, subfolder="", weight_name=path.name, **{files.family.image_encoder_option: None})
    reason = "the plain kind has no such weights in this model"
    return left_out(f"tensors of the IP-Adapter {path.name}", given - wanted, len(given), reason)


def _adapter_parts(path: Path, content: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Sort an adapter's tensors into projection and attention: nested in a pickle, by prefix in safetensors."""
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in ADAPTER_PARTS}
    for key, value in content.items():
        part, _, rest = key.partition(".")
        part, rest = OTHER_NAMES.get(part, part), functools.reduce(lambda text, pair: text.replace(*pair), OTHER_LAYERS, rest)
        if part in parts:
            parts[part] |= value if isinstance(value, dict) else {rest: value}
    lacking = [part for part, tensors in parts.items() if not tensors]
    if lacking or not all(isinstance(value, torch.Tensor) for tensors in parts.values() for value in tensors.values()):
        raise WrongWeights(
            f"ip_adapter: got {str(path)!r}, which is none ({', '.join(lacking) or 'something that is no tensor'} {'missing' if lacking else ''}"
            "); allowed: tensors under image_proj and ip_adapter"
        )
    return parts
