"""Find a model's files, and say what it is from its configs alone.

Nothing here imports torch, nor diffusers where nothing is downloaded, so that planning stays light.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vimaedit.checks import check_choice
from vimaedit.config import Canvas, EditConfig, GroundingSides, ModelConfig
from vimaedit.errors import ConfigError
from vimaedit.images import CanvasSpec
from vimaedit.methods import METHODS
from vimaedit.methods.hosted import PUBLISHED
from vimaedit.models.family import Config, Family, pipeline_class, without_extras
from vimaedit.models.flux import FLUX
from vimaedit.models.image_prompt import find_clip, find_ip_adapter, has_both_towers, tensor_shapes
from vimaedit.models.names import BUILT_IN, DRAWN, download, first_line, local_path, split_hub_id
from vimaedit.models.sd1 import SD1
from vimaedit.models.sd3 import SD3
from vimaedit.models.sdxl import SDXL
from vimaedit.models.stated import field, mapping, read_json, sides, sizes, text, whole
from vimaedit.recipes import config_of, merge_recipes, recipe_of

FAMILIES = (SD1, SDXL, SD3, FLUX)  # the first is that of a checkpoint file which comes without configs
BUNDLE_FILE = "bundle.json"
SHIPPED = Path(__file__).parents[1] / "miniature" / "weights"  # of the built-in family
CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt")
WEIGHT_SUFFIXES = (".safetensors", ".bin")  # of a network's folder, in the order in which libraries prefer them
VARIANT_WEIGHTS = r"[\w-]+\.\w+(-\d+-of-\d+)?\.(safetensors|bin)"
MODELS = f"{', '.join(BUILT_IN)}, a bundle folder ({'|'.join(family.folder for family in FAMILIES)}/ ip_adapter/ clip/), a diffusers folder, a checkpoint file, or a hub id like owner/name"
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
BUNDLE_FIELDS = {"recipe": mapping, "canvas_size": whole, "grounding_sides": mapping, "warning": text}
CONFIG_FIELDS = {"block_out_channels": sizes, "sample_size": sides, "layers_per_block": sides, "pos_embed_max_size": whole}
SIZES = ("block_out_channels", "sample_size")  # that sizes are worked out from: they have to be there
UNSIZED = ("transformer",)  # networks whose configs have not all of these
CLIP_SIDE = 224  # px of the pictures that CLIPs see, where nothing says otherwise


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
    """What planning must know of a model. `canvas_size`, `granularity` (every side is a multiple of it), `clip_side` and
    `largest_side` (of a canvas; None: any) in px."""

    name: str
    family: str
    canvas_size: int
    granularity: int
    clip_side: int
    warning: str | None
    batches: bool = True  # several edits go through it together
    largest_side: int | None = None

    def fit(self, canvas: Canvas) -> CanvasSpec:
        """Return the canvas of edits with this model.

        Raises: ConfigError for a size that it does not take.
        """
        size = canvas.size or self.canvas_size
        try:
            Canvas(size=size)
        except ConfigError as error:
            raise ConfigError(f"model: got {self.name!r}, whose configs give a canvas that does not fit ({error})") from error
        return CanvasSpec(fit=canvas.fit, size=size, granularity=self.granularity, largest=self.largest_side)


def resolve_model(model: ModelConfig, *, image_guidance: bool = True) -> ModelFiles:
    """Find all files of a model, downloading what is named by hub id.

    Raises: ConfigError naming the option and what it may be, also when a hub cannot be reached.
    """
    bundle_root, checkpoint = None, None
    if (bundled := _bundled_pipeline(model.model)) is not None:
        bundle_root, diffusers_dir = bundled.parent, bundled
    elif local_path(model.model).is_file():
        checkpoint = local_path(model.model)
        if checkpoint.suffix not in CHECKPOINT_SUFFIXES:
            raise ConfigError(
                f"model: got the file {model.model!r}; allowed: a checkpoint ending in {', '.join(CHECKPOINT_SUFFIXES)}"
            )
        diffusers_dir = _checkpoint_configs(model, _checkpoint_family(checkpoint))
    else:
        diffusers_dir = _diffusers_folder(model)
    if checkpoint is None and model.model_config is not None:
        raise ConfigError(
            f"model_config: got {model.model_config!r} with model={model.model}; allowed: nothing, but for a checkpoint file"
        )
    check_revision(model)
    option = "model" if checkpoint is None else "model_config"
    family = family_of(read_json(option, diffusers_dir / "model_index.json"), option)
    ip_adapter = clip = None
    if model.ip_adapter is not None and not family.image_prompts:
        raise ConfigError(
            f"ip_adapter: got {model.ip_adapter!r} for a model of {family.title}; allowed: nothing, it takes no image prompt"
        )
    if image_guidance and family.image_prompts and (not family.prompts_by_name or brings_image_prompt(model)):
        fits = family.fits_image_prompt(_config(diffusers_dir, family.denoiser))
        ip_adapter = find_ip_adapter(model, bundle_root, family, fits)
        clip = find_clip(model, bundle_root, diffusers_dir, family, ip_adapter, fits)
    files = [] if checkpoint is not None or model.variant is None else [diffusers_dir / network for network in family.weights]
    if model.variant is not None and not any(_weights_of(folder, model.variant) for folder in files):
        raise ConfigError(
            f"variant: got {model.variant!r}, of which {model.model} has no weights; allowed: nothing, or a variant that a network of it has"
        )
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


def check_revision(model: ModelConfig) -> None:
    """Refuse a revision of what has none. Raises: ConfigError."""
    if model.revision is not None and (model.model in BUILT_IN or local_path(model.model).exists()):
        raise ConfigError(f"revision: got {model.revision!r} with model={model.model}; allowed: nothing, but for a hub id")


def brings_image_prompt(model: ModelConfig) -> bool:
    """Whether a run names an IP-Adapter, or its bundle has one."""
    bundled = _bundled_pipeline(model.model)
    return model.ip_adapter is not None or (bundled is not None and (bundled.parent / "ip_adapter").is_dir())


def family_of(index: Config, option: str = "model") -> Family:
    """Return the family of a diffusers pipeline by its model_index.json; `option` names it in the error.

    Raises: ConfigError for any other kind of pipeline.
    """
    named = index.get("_class_name")
    for family in FAMILIES:
        if named in family.layouts:
            return family
    allowed = ", ".join(f"{family.title} layout ({family.pipeline})" for family in FAMILIES)
    raise ConfigError(
        f"{option}: got a {named}; allowed: models of the {allowed}, by the _class_name of their model_index.json"
    )


def model_facts(files: ModelFiles) -> ModelFacts:
    """Read a model's sizes from its config files."""
    denoiser, autoencoder = (_config(files.diffusers, name) for name in (files.family.denoiser, "vae"))
    canvas_size, granularity = files.family.sizes(denoiser, autoencoder)
    clip_side = files.family.image_prompts[0].clip_side if files.family.image_prompts else CLIP_SIDE
    if files.clip is not None:
        path = files.clip / "config.json"
        content = read_json("clip", path)
        vision = field("clip", path, content, "vision_config", mapping) if has_both_towers(files.clip) else content
        clip_side = field("clip", path, vision, "image_size", whole, clip_side)
    return ModelFacts(
        name=files.name,
        family=files.family.name,
        canvas_size=files.bundle.get("canvas_size", canvas_size),
        granularity=granularity,
        clip_side=clip_side,
        warning=files.bundle.get("warning"),
        largest_side=files.family.largest_side(denoiser, autoencoder) if files.family.largest_side is not None else None,
    )


def model_digest(files: ModelFiles, unmerged: Sequence[Sequence[str]] = ()) -> str:
    """Digest the contents of every weight file used, and of all files that say how they are used (configs, tokenizers, levels, a bundle's
    own), and the scales of the LoRAs: 32 hexadecimal digits.

    `unmerged`: the keys of each LoRA that reach no weight here, for what is not merged is no part of the model.
    """
    digest = hashlib.sha256()
    weights = [files.checkpoint] if files.checkpoint is not None else []
    if files.checkpoint is None:
        for network in files.family.weights:
            weights += network_weights("model", files.diffusers / network, files.variant)[1]
    settings = settings_of(files.diffusers, "*/*")
    if files.ip_adapter is not None and files.clip is not None:
        weights += [files.ip_adapter, *network_weights("clip", files.clip, None)[1]]
        settings += settings_of(files.clip, "*")
    for path in (*weights, *settings):
        _add_file(digest, path)
    stated = {name: files.bundle[name] for name in ("canvas_size", "grounding_sides") if name in files.bundle}
    digest.update(json.dumps(stated, sort_keys=True).encode() if stated else b"")
    for number_, (path, scale) in enumerate(files.loras):
        digest.update(f"lora {scale!r}".encode())
        _add_file(digest, path)
        if number_ < len(unmerged) and unmerged[number_]:
            digest.update(f"without {sorted(unmerged[number_])!r}".encode())
    return digest.hexdigest()[:32]


def settings_of(folder: Path, pattern: str) -> list[Path]:
    """List the small files of a folder that say how its weights are used."""
    return sorted(path for path in folder.glob(pattern) if path.suffix in (".json", ".txt", ".model") and path.is_file())


def weights_gib(files: ModelFiles, dtype: str, offload: str = "none") -> float:
    """Return how much memory a model's weights take as edits load them, in GiB: by their headers, or by the size of what has none.
    Encoders that wait beside the GPU (`offload`) take none while a batch is denoised; in one checkpoint file they are not told apart."""
    size, waits = ITEM_BYTES[dtype], offload == "encoders"
    taken = 0.0
    for network in files.family.networks if waits else files.family.weights:
        upcast = network == "vae" and files.family.upcasts_vae
        for path in [] if files.checkpoint else network_weights("model", files.diffusers / network, files.variant)[1]:
            taken += bytes_loaded(path, 4 if upcast else size)
    taken += 0 if files.checkpoint is None else bytes_loaded(files.checkpoint, size)
    if files.ip_adapter is not None and files.clip is not None:
        taken += bytes_loaded(files.ip_adapter, size)
        taken += 0 if waits else sum(bytes_loaded(path, 4) for path in network_weights("clip", files.clip, None)[1])
    return taken / 2**30


def bytes_loaded(path: Path, item: int) -> int:
    """Return the memory of a file's tensors at `item` bytes a number: by its header, or the file's size where it has none."""
    shapes = tensor_shapes(path)
    return sum(math.prod(shape) for shape in shapes.values()) * item if shapes else path.stat().st_size


def bundle_recipe(name: str) -> dict[str, Any]:
    """Return the options of `EditConfig` that suit a model: its family's, where it is told without asking a hub, and what a bundle states
    as its own, nested as in a file."""
    for family in FAMILIES:
        # A drawn one need not be built to know what it states.
        if name == family.configs or (name in DRAWN and name.endswith(f"-{family.name}")):
            return merge_recipes(family.recipe)
    if name in DRAWN:
        return {}
    if name in PUBLISHED:
        return {"methods": {"pipeline": PUBLISHED[name]}}
    index = local_path(name) / "model_index.json"
    if index.is_file():  # what its class is published with, where it is hosted as it is
        named = str(read_json("model", index).get("_class_name"))
        own = next((family.recipe for family in FAMILIES if named in family.layouts), {})
        return merge_recipes(own, {"methods": {"pipeline": PUBLISHED.get(named, {})}})
    bundled = _bundled_pipeline(name)
    own = next((family.recipe for family in FAMILIES if bundled is not None and bundled.name == family.folder), {})
    stated: dict[str, Any] = _bundle_facts(name).get("recipe", {})
    methods = [recipe.get("methods", {}) for recipe in (own, stated)]
    both = {method: merge_recipes(*(each.get(method, {}) for each in methods)) for method in merge_recipes(*methods)}
    return merge_recipes(own, stated, {"methods": both} if both else {})


def recipe_config(name: str, method: str | None = None) -> EditConfig:
    """Return the defaults of edits with this model and a method (None: the model's own, else ViMAEdit): the general ones, and what
    its bundle and the method state instead.

    Raises: ConfigError where that is none of `EditConfig`.
    """
    stated = bundle_recipe(name)
    if not stated:
        return config_of(recipe_of(stated, method))
    if method is not None:
        check_choice("method", method, METHODS)
    try:
        return config_of(recipe_of(stated, method))
    except (ConfigError, TypeError) as error:
        raise ConfigError(
            f"model: got {name!r}, whose recipe does not fit ({BUNDLE_FILE}: {error}); allowed: options of an edit"
        ) from error


def check_bundle(path: Path, content: Config) -> dict[str, Any]:
    """Return what a bundle's file states of itself, its fields' types checked.

    Raises: ConfigError naming the file (`path`) and the field.
    """
    for name, kind in BUNDLE_FIELDS.items():
        field("model", path, content, name, kind, None)
    given = field("model", path, content, "grounding_sides", mapping, {})
    recipe = field("model", path, content, "recipe", mapping, {})
    methods = field("model", path, recipe, "methods", mapping, {})
    for name in methods:
        field("model", path, methods, name, mapping)
    field("model", path, recipe, "method", text, None)
    for name, build, allowed in (
        ("grounding_sides", lambda: GroundingSides(**given), "self and cross"),
        ("canvas_size", lambda: Canvas(size=content.get("canvas_size")), "what canvas.size may be"),
    ):
        try:
            build()
        except (ConfigError, TypeError) as error:
            raise ConfigError(
                f"model: got a model whose {path.parent.name}/{path.name} has {name} that does not fit ({error}); allowed: {allowed}"
            ) from error
    return {name: value for name, value in content.items() if value is not None}


def _bundled_pipeline(name: str) -> Path | None:
    """Return the diffusers folder in a bundle, named as its family's are; None for what is no bundle."""
    if name in DRAWN:
        from vimaedit.miniature.random_bundle import random_bundle
        from vimaedit.miniature.random_flow import KINDS, random_flow_bundle

        root = random_flow_bundle(name) if name in KINDS else random_bundle(name=name)
    else:
        root = SHIPPED / "miniature" if name in BUILT_IN else local_path(name)
    folders = [root / family.folder for family in FAMILIES]
    return next((folder for folder in folders if (folder / "model_index.json").is_file()), None)


def _bundle_facts(name: str) -> dict[str, Any]:
    pipeline = _bundled_pipeline(name)
    path = pipeline.parent / BUNDLE_FILE if pipeline is not None else None
    return check_bundle(path, read_json("model", path)) if path is not None and path.exists() else {}


def _diffusers_folder(model: ModelConfig) -> Path:
    root = local_path(model.model)
    if not root.is_dir():
        repository, inner = split_hub_id("model", model.model, allowed=MODELS)
        if inner:
            raise ConfigError(f"model: got {model.model!r}, which is no file or folder here; allowed: {MODELS}")
        root = _download_pipeline(model, repository)
    if not (root / "model_index.json").is_file():
        raise ConfigError(
            f"model: got the folder {model.model!r} without model_index.json; allowed: a bundle or diffusers folder"
        )
    return root


def _checkpoint_configs(model: ModelConfig, family: Family) -> Path:
    if model.model_config is None:
        return download(family.configs, "model_config", None, ["*.json", "tokenizer*/*", "scheduler/*"])
    root = local_path(model.model_config)
    if not (root / "model_index.json").is_file():
        raise ConfigError(
            f"model_config: got {model.model_config!r}, which holds no model_index.json; allowed: a local diffusers folder, whose "
            "configs and tokenizer a checkpoint file needs"
        )
    return root


def _checkpoint_family(checkpoint: Path) -> Family:
    """Tell a checkpoint's family by its text encoders; the first where that says nothing.

    Raises: ConfigError for a file of a denoiser alone.
    """
    shapes = tensor_shapes(checkpoint)
    for family in FAMILIES:
        if family.lone_denoiser is not None and any(family.lone_denoiser in name for name in shapes):
            raise ConfigError(
                f"model: got the file {str(checkpoint)!r}, of a {family.title}; allowed: a diffusers folder or a hub id of one, for such files "
                "lack text encoders and autoencoder"
            )
    for family in FAMILIES:
        if all(any(name.startswith(encoder.checkpoint) for name in shapes) for encoder in family.text_encoders):
            return family
    return FAMILIES[0]


def _find_lora(name: str) -> Path:
    """Find the one weight file of a LoRA: named itself, or the only one of its folder."""
    path = local_path(name)
    if not path.exists():
        repository, file = split_hub_id("lora", name)
        path = download(repository, "lora", None, [file or "*.safetensors"])
        path = path / file if file else path
    if path.is_file():
        return path
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise ConfigError(f"lora: got {name!r}, which holds {len(found)} .safetensors files; allowed: one, or the path of one")
    return found[0]


def _download_pipeline(model: ModelConfig, repository: str) -> Path:
    """Fetch a pipeline's folder; nothing but its index where that is of no family, or missing."""
    root = download(repository, "model", model.revision, ["model_index.json"])
    if not (root / "model_index.json").is_file():
        return root
    family = family_of(read_json("model", root / "model_index.json"))
    pipeline = pipeline_class(family)
    try:
        return Path(pipeline.download(repository, revision=model.revision, variant=model.variant, **without_extras(family)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: got the hub id {repository!r}, which cannot be had: {first_line(error)}") from error


def network_weights(option: str, folder: Path, variant: str | None) -> tuple[str | None, list[Path]]:
    """Return which variant of a network's weights is read, the one asked for where the folder has it, else the plain one, and its files:
    safetensors before pickles, all shards.

    Raises: ConfigError where there is neither, naming the variants that there are.
    """
    for each in dict.fromkeys((variant, None)):
        if found := _weights_of(folder, each):
            return each, found
    others = sorted({path.name.split(".")[1] for path in _entries(folder) if re.fullmatch(VARIANT_WEIGHTS, path.name)})
    advice = f"variant={' or variant='.join(others)}" if others else "a folder with .safetensors or .bin weights"
    holds = f"no weights but those of the variant {' and '.join(others)}" if others else "no weights"
    raise ConfigError(f"{option}: got {folder}, which holds {holds}; allowed: {advice}")


def _weights_of(folder: Path, variant: str | None) -> list[Path]:
    infix = f".{re.escape(variant)}" if variant else ""
    for suffix in WEIGHT_SUFFIXES:
        whole_or_shard = re.compile(rf"[\w-]+{infix}(-\d+-of-\d+)?{re.escape(suffix)}")
        if found := sorted(path for path in _entries(folder) if whole_or_shard.fullmatch(path.name)):
            return found
    return []


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _add_file(digest: Any, path: Path) -> None:
    with path.open("rb") as stream:
        digest.update(hashlib.file_digest(stream, "sha256").digest())


def _config(diffusers: Path, network: str) -> dict[str, Any]:
    """Read a network's config, those fields checked that planning reads, or whose mistakes show where nobody looks for them."""
    path = diffusers / network / "config.json"
    content = read_json("model", path)
    for name, kind in CONFIG_FIELDS.items():
        if name in content or (name in SIZES and network not in UNSIZED):
            field("model", path, content, name, kind)
    return content
