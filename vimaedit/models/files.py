"""Find a model's files, and say what it is from its configs alone.

Nothing here imports torch, nor diffusers where nothing is downloaded, so that planning stays light.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vimaedit.config import EditConfig, ModelConfig
from vimaedit.errors import ConfigError
from vimaedit.models.family import Config, Family, ImagePrompt, pipeline_class
from vimaedit.models.sd1 import SD1
from vimaedit.recipes import config_of, recipe_of

FAMILIES = (SD1,)  # the first is that of a checkpoint file which comes without configs
BUNDLE_FILE = "bundle.json"
BUILT_IN = ("miniature", "random")
SHIPPED = Path(__file__).parents[1] / "miniature" / "weights"  # of the built-in family
CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+)?")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Local paths of one model. `diffusers` is a pipeline folder; with a `checkpoint` it only lends configs and tokenizer."""

    name: str
    family: Family
    diffusers: Path
    checkpoint: Path | None
    ip_adapter: Path | None
    clip: Path | None
    loras: tuple[tuple[Path, float], ...]
    variant: str | None
    bundle: dict[str, Any]  # what the bundle states of itself, empty for other models


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What planning must know of a model. `canvas_size`, `granularity` (every side is a multiple of it) and `clip_side` in px."""

    name: str
    canvas_size: int
    granularity: int
    clip_side: int
    warning: str | None


def resolve_model(model: ModelConfig, *, image_guidance: bool = True) -> ModelFiles:
    """Find all files of a model, downloading what is named by hub id.

    Raises: ConfigError naming the option and what it may be, also when a hub cannot be reached.
    """
    bundle_root = _bundle_root(model.model)
    checkpoint = None
    if bundle_root is not None:
        diffusers_dir = bundle_root / "sd"
    elif Path(model.model).is_file():
        checkpoint = Path(model.model)
        if checkpoint.suffix not in CHECKPOINT_SUFFIXES:
            raise ConfigError(
                f"model: got the file {model.model!r}; allowed: a checkpoint ending in {', '.join(CHECKPOINT_SUFFIXES)}"
            )
        diffusers_dir = _checkpoint_configs(model)
    else:
        diffusers_dir = _diffusers_folder(model)
    option = "model" if checkpoint is None else "model_config"
    family = family_of(_read_json(diffusers_dir / "model_index.json"), option)
    ip_adapter = clip = None
    if image_guidance:
        fits = family.fits_image_prompt(_config(diffusers_dir, family.denoiser))
        ip_adapter = _find_ip_adapter(model, bundle_root, family.image_prompt, fits)
        clip = _find_clip(model, bundle_root, family.image_prompt, fits)
    return ModelFiles(
        name=model.model,
        family=family,
        diffusers=diffusers_dir,
        checkpoint=checkpoint,
        ip_adapter=ip_adapter,
        clip=clip,
        loras=tuple((_find_lora(entry.path), entry.scale) for entry in model.lora),
        variant=model.variant,
        bundle=_bundle_facts(model.model),
    )


def family_of(index: Config, option: str = "model") -> Family:
    """Return the family of a diffusers pipeline by its model_index.json; `option` names it in the error.

    Raises: ConfigError for any other kind of pipeline.
    """
    named = index.get("_class_name")
    for family in FAMILIES:
        if named in family.layouts:
            return family
    allowed = ", ".join(f"{family.title} layout ({family.pipeline})" for family in FAMILIES)
    raise ConfigError(f"{option}: got a {named}; allowed: models of the {allowed}")


def model_facts(files: ModelFiles) -> ModelFacts:
    """Read a model's sizes from its config files."""
    denoiser, autoencoder = (_config(files.diffusers, name) for name in (files.family.denoiser, "vae"))
    canvas_size, granularity = files.family.sizes(denoiser, autoencoder)
    clip_side = files.family.image_prompt.clip_side
    if files.clip is not None:
        clip_side = int(_read_json(files.clip / "config.json")["vision_config"].get("image_size", clip_side))
    return ModelFacts(
        name=files.name,
        canvas_size=int(files.bundle.get("canvas_size", canvas_size)),
        granularity=granularity,
        clip_side=clip_side,
        warning=files.bundle.get("warning"),
    )


def model_digest(files: ModelFiles) -> str:
    """Digest the contents of every weight file used, and the scales of the LoRAs: 32 hexadecimal digits."""
    digest = hashlib.sha256()
    weights = [files.checkpoint] if files.checkpoint is not None else []
    if files.checkpoint is None:
        for network in files.family.networks:
            weights += _network_weights("model", files.diffusers / network, files.variant)
    if files.ip_adapter is not None and files.clip is not None:
        weights += [files.ip_adapter, *_network_weights("clip", files.clip, None)]
    for path in weights:
        _add_file(digest, path)
    for path, scale in files.loras:
        digest.update(f"lora {scale!r}".encode())
        _add_file(digest, path)
    return digest.hexdigest()[:32]


def bundle_recipe(name: str) -> dict[str, Any]:
    """Return the options of `EditConfig` that a bundle states as its own, nested as in a file; empty for other models."""
    if name == "random":  # it need not be built to know that it states none
        return {}
    recipe: dict[str, Any] = _bundle_facts(name).get("recipe", {})
    return recipe


def recipe_config(name: str, method: str | None = None) -> EditConfig:
    """Return the defaults of edits with this model and a method (None: the model's own, else ViMAEdit): the general ones, and what
    its bundle and the method state instead.

    Raises: ConfigError where that is none of `EditConfig`.
    """
    recipe = recipe_of(bundle_recipe(name), method)
    try:
        return config_of(recipe)
    except TypeError as error:
        raise ConfigError(f"model: got {name!r}, whose recipe does not fit ({error}); allowed: options of an edit") from error


def _bundle_root(name: str) -> Path | None:
    if name == "random":
        from vimaedit.miniature.random_bundle import random_bundle

        return random_bundle()
    root = SHIPPED / "miniature" if name in BUILT_IN else Path(name)
    return root if (root / "sd" / "model_index.json").is_file() else None


def _bundle_facts(name: str) -> dict[str, Any]:
    root = _bundle_root(name)
    path = root / BUNDLE_FILE if root is not None else None
    return _read_json(path) if path is not None and path.is_file() else {}


def _diffusers_folder(model: ModelConfig) -> Path:
    root = Path(model.model)
    if not root.is_dir():
        if not HUB_ID.fullmatch(model.model) or root.is_absolute():
            raise ConfigError(
                f"model: got {model.model!r}, which is no file or folder here; allowed: {', '.join(BUILT_IN)}, a bundle folder "
                "(sd/ ip_adapter/ clip/), a diffusers folder, a checkpoint file, or a hub id like owner/name"
            )
        root = _download_pipeline(model)
    if not (root / "model_index.json").is_file():
        raise ConfigError(
            f"model: got the folder {model.model!r} without model_index.json; allowed: a bundle or diffusers folder"
        )
    return root


def _checkpoint_configs(model: ModelConfig) -> Path:
    if model.model_config is None:
        return _download(FAMILIES[0].configs, "model_config", None, ["*.json", "tokenizer/*", "scheduler/*"])
    root = Path(model.model_config)
    if not (root / "model_index.json").is_file():
        raise ConfigError(
            f"model_config: got {model.model_config!r}, which holds no model_index.json; allowed: a local diffusers folder, whose "
            "configs and tokenizer a checkpoint file needs"
        )
    return root


def _find_ip_adapter(model: ModelConfig, bundle_root: Path | None, public: ImagePrompt, fits: bool) -> Path:
    name = model.ip_adapter
    if name is None and bundle_root is not None and (bundle_root / "ip_adapter" / public.file).is_file():
        return bundle_root / "ip_adapter" / public.file
    if name is None and not fits:
        raise ConfigError(
            f"ip_adapter: got nothing, and {model.model!r} brings none; allowed: ip_adapter=FILE_OR_HUB_ID and clip=FOLDER_OR_HUB_ID, "
            "or image_guidance=false"
        )
    name = name or public.adapter
    path = Path(name)
    if path.is_dir():
        path = path / public.file
    if path.is_file():
        return path
    owner_name, file = _split_hub_id("ip_adapter", name)
    return _download(owner_name, "ip_adapter", None, [file or public.file]) / (file or public.file)


def _find_clip(model: ModelConfig, bundle_root: Path | None, public: ImagePrompt, fits: bool) -> Path:
    name = model.clip
    if name is None and bundle_root is not None and (bundle_root / "clip" / "config.json").is_file():
        return bundle_root / "clip"
    if name is None and not fits:
        raise ConfigError(
            f"clip: got nothing, and {model.model!r} brings none; allowed: clip=FOLDER_OR_HUB_ID with both CLIP towers, or image_guidance=false"
        )
    name = name or public.clip
    path = Path(name)
    if not path.is_dir():
        owner_name, _ = _split_hub_id("clip", name)
        path = _download(owner_name, "clip", None, ["*.json", "*.txt", "model*.safetensors", "pytorch_model*.bin"])
    if not (path / "config.json").is_file() or "vision_config" not in _read_json(path / "config.json"):
        raise ConfigError(
            f"clip: got {name!r}, which is no CLIP model; allowed: a folder or hub id with both towers (config.json, weights)"
        )
    return path


def _find_lora(name: str) -> Path:
    """Find the one weight file of a LoRA: named itself, or the only one of its folder."""
    path = Path(name)
    if not path.exists():
        owner_name, file = _split_hub_id("lora", name)
        path = _download(owner_name, "lora", None, [file or "*.safetensors"])
        path = path / file if file else path
    if path.is_file():
        return path
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise ConfigError(f"lora: got {name!r}, which holds {len(found)} .safetensors files; allowed: one, or the path of one")
    return found[0]


def _split_hub_id(option: str, name: str) -> tuple[str, str]:
    """Return the repository and the file in it ("" where none is named)."""
    if not HUB_ID.fullmatch(name) or Path(name).is_absolute():
        raise ConfigError(
            f"{option}: got {name!r}, which is no file or folder here; allowed: a local path, or a hub id like owner/name"
        )
    owner, repo, *rest = name.split("/", 2)
    return f"{owner}/{repo}", rest[0] if rest else ""


def _download_pipeline(model: ModelConfig) -> Path:
    """Fetch a pipeline's folder; nothing but its index where that is of no family, or missing."""
    root = _download(model.model, "model", model.revision, ["model_index.json"])
    if not (root / "model_index.json").is_file():
        return root
    pipeline = pipeline_class(family_of(_read_json(root / "model_index.json")))
    try:
        return Path(
            pipeline.download(
                model.model, revision=model.revision, variant=model.variant, safety_checker=None, requires_safety_checker=False
            )
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: got the hub id {model.model!r}, which cannot be had: {_first_line(error)}") from error


def _download(repo: str, option: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{option}: got the hub id {repo!r}, which cannot be had: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _network_weights(option: str, folder: Path, variant: str | None) -> list[Path]:
    """List the weight files that `from_pretrained` reads: the variant's, safetensors before pickles, all shards."""
    infixes = [f".{variant}", ""] if variant else [""]
    for infix in infixes:
        for suffix in (".safetensors", ".bin"):
            whole = re.compile(rf"[\w-]+{re.escape(infix)}(-\d+-of-\d+)?{re.escape(suffix)}")
            found = sorted(p for p in folder.iterdir() if whole.fullmatch(p.name))
            if found:
                return found
    raise ConfigError(f"{option}: got {folder}, which holds no weights; allowed: a folder with .safetensors or .bin weights")


def _add_file(digest: Any, path: Path) -> None:
    with path.open("rb") as stream:
        digest.update(hashlib.file_digest(stream, "sha256").digest())


def _config(diffusers: Path, network: str) -> dict[str, Any]:
    return _read_json(diffusers / network / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model: got a model whose {path.parent.name}/{path.name} cannot be read: {_first_line(error)}"
        ) from error
    return content
