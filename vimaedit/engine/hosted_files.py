"""The files of a pipeline that is hosted as it is: where it lies, what planning must know of it, its digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vimaedit.config import ModelConfig
from vimaedit.errors import ConfigError
from vimaedit.models.family import reduction, trained_side
from vimaedit.models.files import (
    CONFIG_FIELDS,
    ITEM_BYTES,
    ModelFacts,
    bytes_loaded,
    check_revision,
    network_weights,
    settings_of,
)
from vimaedit.models.names import download, first_line, local_path, split_hub_id
from vimaedit.models.stated import field, read_json, text

DENOISERS = ("unet", "transformer")
PACKED = 2  # latents of a token's side in the transformers of diffusers
LARGE_SIDE = 1024  # px, where a transformer's config does not say what it was trained at


@dataclass(frozen=True, kw_only=True)
class HostedFiles:
    """A diffusers folder of any kind: its path, the class that its index names, and the variant of its weights."""

    name: str
    folder: Path
    kind: str
    variant: str | None


def find_pipeline(model: ModelConfig) -> HostedFiles:
    """Find a pipeline's folder, downloaded where it is named by hub id.

    Raises: ConfigError for what is none.
    """
    for name in ("lora", "ip_adapter", "clip", "model_config", "compile"):
        if getattr(model, name):
            raise ConfigError(
                f"{name}: got {getattr(model, name)!r} with method=pipeline; allowed: nothing, for a hosted pipeline is taken as it is"
            )
    if model.offload != "none":
        raise ConfigError(
            f"offload: got {model.offload} with method=pipeline; allowed: none, for a hosted pipeline is taken as it is"
        )
    check_revision(model)
    folder = local_path(model.model)
    if not folder.is_dir():
        folder = _download(
            model, split_hub_id("model", model.model, allowed="a diffusers folder, or a hub id like owner/name")[0]
        )
    path = folder / "model_index.json"
    if not path.is_file():
        raise ConfigError(f"model: got the folder {model.model!r} without model_index.json; allowed: a diffusers folder")
    kind = field("model", path, read_json("model", path), "_class_name", text)
    return HostedFiles(name=model.model, folder=folder, kind=kind, variant=model.variant)


def hosted_facts(files: HostedFiles) -> ModelFacts:
    """Read a pipeline's sizes from its configs: the canvas that it was trained at, and what its sides are multiples of."""
    autoencoder = _config(files, "vae")
    denoiser = next((config for name in DENOISERS if (config := _config(files, name))), {})
    factor = reduction(autoencoder) if "block_out_channels" in autoencoder else 8
    halvings = reduction(denoiser) if "block_out_channels" in denoiser else PACKED
    side = trained_side(denoiser) * factor if "sample_size" in denoiser else LARGE_SIDE
    granularity = factor * halvings
    return ModelFacts(
        name=files.name,
        family=files.kind,
        canvas_size=max(granularity, side // granularity * granularity),
        granularity=granularity,
        clip_side=granularity,  # nothing looks at it
        warning=None,
    )


def hosted_digest(files: HostedFiles) -> str:
    """Digest the contents of all weights and configs: 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in sorted(path for path in files.folder.iterdir() if path.is_dir()):
        configs = settings_of(part, "*")
        weights = network_weights("model", part, files.variant)[1] if _has_weights(part) else []
        for path in (*configs, *weights):
            digest.update(f"{part.name}/{path.name}".encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    digest.update((files.folder / "model_index.json").read_bytes())
    return digest.hexdigest()[:32]


def hosted_gib(files: HostedFiles, dtype: str) -> float:
    """Return how much memory a pipeline's weights take, in GiB."""
    parts = [part for part in files.folder.iterdir() if part.is_dir() and _has_weights(part)]
    weights = [path for part in parts for path in network_weights("model", part, files.variant)[1]]
    return sum(bytes_loaded(path, ITEM_BYTES[dtype]) for path in weights) / 2**30


def _has_weights(folder: Path) -> bool:
    return any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir())


def _config(files: HostedFiles, part: str) -> dict[str, Any]:
    path = files.folder / part / "config.json"
    content = read_json("model", path) if path.is_file() else {}
    checked = {name: field("model", path, content, name, kind, None) for name, kind in CONFIG_FIELDS.items()}
    return {name: value for name, value in checked.items() if value is not None}


def _download(model: ModelConfig, repository: str) -> Path:
    root = download(repository, "model", model.revision, ["model_index.json"])
    if not (root / "model_index.json").is_file():
        return root
    import diffusers

    try:
        found = diffusers.DiffusionPipeline.download(repository, revision=model.revision, variant=model.variant)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: got the hub id {repository!r}, which cannot be had: {first_line(error)}") from error
    return Path(found)
