"""What a training leaves beside its state: each stage's averaged weights in half precision, read by the stages above and by the bundle.

`<stage>.safetensors` is all that is needed to go on elsewhere (with a fresh optimizer) or to write a bundle at any time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel

from vimaedit.errors import ConfigError
from vimaedit.miniature.bundle_files import ADAPTER_FILE
from vimaedit.miniature.family import UNET_CHANNELS, new_autoencoder, new_clip
from vimaedit.miniature.training.components import Components, fit_components, read_components
from vimaedit.miniature.training.data import render_batch, to_pixels, training_scene
from vimaedit.miniature.training.denoiser import Denoiser
from vimaedit.models.files import SHIPPED

Network = TypeVar("Network", bound=nn.Module)
_FITTED_SCENES = 1500
_UNET_FILE, _TRANSFORMER_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"
# Where weights lie below a bundle's folder, or beside it: the file and what its names get in front.
_DENOISER = {f"sd/unet/{_UNET_FILE}": "unet.", f"sd/text_encoder/{_TRANSFORMER_FILE}": "text_encoder."}
_BARE_DENOISER = {"unet.safetensors": "unet.", "text_encoder.safetensors": "text_encoder."}
_AUTOENCODER = f"sd/vae/{_UNET_FILE}"
_PLAIN = {
    "clip": f"clip/{_TRANSFORMER_FILE}",
    "scoring_clip": f"../scoring_clip/{_TRANSFORMER_FILE}",
    "ip_adapter": f"ip_adapter/models/{ADAPTER_FILE}",
}


def weights_path(checkpoints: Path, stage: str) -> Path:
    """Return the file of a stage's averaged weights."""
    return checkpoints / f"{stage}.safetensors"


def save_weights(checkpoints: Path, stage: str, weights: Mapping[str, Tensor]) -> None:
    """Leave a stage's averaged weights in half precision, the file whole at any time."""
    building = checkpoints / f"{stage}.{os.getpid()}"
    save_file({name: value.detach().half().cpu().contiguous() for name, value in weights.items()}, building)
    os.replace(building, weights_path(checkpoints, stage))


def find_weights(checkpoints: Path, stage: str) -> Path:
    """Return the file of a stage's averaged weights. Raises: ConfigError where there is none yet."""
    path = weights_path(checkpoints, stage)
    if not path.is_file():
        raise ConfigError(
            f"output: got {checkpoints.parent}, which holds no weights of {stage}; allowed: train them first, or start="
        )
    return path


def load_weights(checkpoints: Path, stage: str) -> dict[str, Tensor]:
    """Return a stage's averaged weights in float32. Raises: ConfigError where there are none yet."""
    return {name: value.float() for name, value in load_file(find_weights(checkpoints, stage)).items()}


def begin(checkpoints: Path, start: str) -> None:
    """Fill an empty folder with the weights of `start`, and with the built-in family's where `start` holds none.

    Components are found in drawn scenes where training starts from nothing: a decoder or UNet belongs to its own.
    """
    if weights_path(checkpoints, "components").is_file():
        return
    if any(checkpoints.glob("*.pt")):
        raise ConfigError(f"output: got {checkpoints.parent}, whose checkpoints an older version left; allowed: a new folder")
    if not start:
        scenes = [training_scene("components", n)[0] for n in range(_FITTED_SCENES)]
        _save_components(checkpoints, fit_components(to_pixels(render_batch(scenes))))
        return
    folder = Path(start)
    if not any((folder / name).is_file() for name in (*_DENOISER, *_BARE_DENOISER)):
        raise ConfigError(f"start: got {start!r}; allowed: a bundle's folder, or one with {' and '.join(_BARE_DENOISER)}")
    roots = [folder, SHIPPED / "miniature"]
    for stage, name in _PLAIN.items():
        save_weights(checkpoints, stage, load_file(_first(roots, name)))
    bare = (folder / next(iter(_BARE_DENOISER))).is_file()
    files = _BARE_DENOISER if bare else _DENOISER
    denoiser = {prefix + key: value for name, prefix in files.items() for key, value in load_file(folder / name).items()}
    save_weights(checkpoints, "denoiser", denoiser)
    autoencoder = load_file(_first(roots, _AUTOENCODER))
    decoder = {key.removeprefix("decoder."): value for key, value in autoencoder.items() if key.startswith("decoder.")}
    save_weights(checkpoints, "decoder", decoder)
    _save_components(checkpoints, read_components(autoencoder))  # last: with it the folder is begun


def load_components(checkpoints: Path) -> Components:
    """Return the components that the folder was begun with."""
    return Components(**load_file(weights_path(checkpoints, "components")))


def load_denoiser(checkpoints: Path) -> Denoiser:
    """Return the trained UNet and text encoder."""
    weights = load_weights(checkpoints, "denoiser")
    return _loaded(Denoiser(_channels(weights, "unet.")), weights)


def load_clip(checkpoints: Path, stage: str) -> CLIPModel:
    """Return one of the two CLIPs."""
    return _loaded(new_clip(), load_weights(checkpoints, stage))


def load_decoder(checkpoints: Path) -> nn.Module:
    """Return the autoencoder's decoder."""
    decoder: nn.Module = new_autoencoder().decoder
    return _loaded(decoder, load_weights(checkpoints, "decoder"))


def _loaded(network: Network, weights: Mapping[str, Tensor]) -> Network:
    network.load_state_dict(weights)
    network.eval()
    return network


def _channels(weights: Mapping[str, Tensor], prefix: str = "") -> list[int]:
    """Tell the widths of a UNet's sides from its weights."""
    return [weights[f"{prefix}down_blocks.{n}.resnets.0.conv2.weight"].shape[0] for n in range(len(UNET_CHANNELS))]


def _save_components(checkpoints: Path, components: Components) -> None:
    building = checkpoints / f"components.{os.getpid()}"
    save_file({name: value.contiguous() for name, value in vars(components).items()}, building)
    os.replace(building, weights_path(checkpoints, "components"))


def _first(roots: list[Path], name: str) -> Path:
    """Return the file of the first folder that has it; the last has all."""
    return next((root / name for root in roots if (root / name).is_file()), roots[-1] / name)
