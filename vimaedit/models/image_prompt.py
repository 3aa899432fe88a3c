"""Find the IP-Adapter of a model and the CLIP that it goes with, by what their files say: the wrong one is the usual mistake."""

from __future__ import annotations

import json
from pathlib import Path

from vimaedit.config import ModelConfig
from vimaedit.errors import ConfigError
from vimaedit.models.family import Family
from vimaedit.models.names import download, local_path, split_hub_id
from vimaedit.models.stated import read_json, whole

ADAPTER_SUFFIXES = (".safetensors", ".bin")
ADAPTER_INPUT = "image_proj.proj.weight"  # of an adapter of the plain kind: as wide as the embeddings that it takes
CLIPS = "a folder or hub id with both towers (config.json, weights)"


def find_ip_adapter(model: ModelConfig, bundle_root: Path | None, family: Family, fits: bool) -> Path:
    """Find the adapter that is named, the bundle's, or the family's public one.

    Raises: ConfigError.
    """
    name, public = model.ip_adapter, family.image_prompts[0]
    if name is None and bundle_root is not None and (bundle_root / "ip_adapter").is_dir():
        return _adapter_file(bundle_root / "ip_adapter", family)
    if name is None and not fits:
        raise ConfigError(
            f"ip_adapter: got nothing, and {model.model!r} brings none; allowed: ip_adapter=FILE_OR_HUB_ID and clip=FOLDER_OR_HUB_ID, "
            "or image_guidance=false"
        )
    path = local_path(name or public.adapter)
    if name is not None and path.is_dir():
        return _adapter_file(path, family)
    if name is not None and path.is_file():
        return path
    repository, file = (public.adapter, "") if name is None else split_hub_id("ip_adapter", name)
    file = file or public.file
    found = download(repository, "ip_adapter", None, [file]) / file
    if not found.is_file():
        raise ConfigError(f"ip_adapter: got the hub id {repository!r}, where there is no {file}; allowed: owner/name/FILE")
    return found


def _adapter_file(folder: Path, family: Family) -> Path:
    """Find an IP-Adapter in a folder: a public one of the family, as it lies in its repository or beside it, else the only one there is."""
    public = [Path(prompt.file) for prompt in family.image_prompts]
    for name in public:
        for suffix in ADAPTER_SUFFIXES:
            inside = folder / name.with_suffix(suffix)
            for path in (inside, folder / inside.name):
                if path.is_file():
                    return path
    places = dict.fromkeys((folder, *(folder / name.parent for name in public)))
    found = sorted(path for place in places for path in place.glob("*") if path.suffix in ADAPTER_SUFFIXES)
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found) or "none"
    raise ConfigError(
        f"ip_adapter: got the folder {str(folder)!r}, which holds {len(found)} adapters ({names}); allowed: {public[0]}, one file "
        f"({', '.join(ADAPTER_SUFFIXES)}), or the path of one"
    )


def find_clip(
    model: ModelConfig, bundle_root: Path | None, diffusers_dir: Path, family: Family, adapter: Path, fits: bool
) -> Path:
    """Find the CLIP whose embeddings an adapter takes: the one named, the bundle's, the image encoder beside the adapter where the
    model has its text side, or the public one.

    Raises: ConfigError, also for one whose embeddings are of another width than the adapter takes.
    """
    taken = tensor_shapes(adapter).get(ADAPTER_INPUT, [0])[-1]  # 0: not told, by a pickle or another kind of adapter
    if model.clip is not None:
        found = _clip_folder(model.clip)
        _check_towers(model.clip, found, diffusers_dir, family)
        _check_width(adapter, taken, model.clip, found, family)
        return found
    own = [bundle_root / "clip"] if bundle_root is not None and (bundle_root / "clip" / "config.json").is_file() else []
    beside = adapter.parent / "image_encoder"
    if family.shared_space is not None and _embedding_width(beside) == _text_width(diffusers_dir, family):
        own.append(beside)
    if fitting := [folder for folder in own if _embedding_width(folder) == taken]:
        return fitting[0]
    if own:
        _check_width(adapter, taken, str(own[0]), own[0], family)
        return own[0]
    if not fits:
        raise ConfigError(
            f"clip: got nothing, and {model.model!r} brings none; allowed: clip=FOLDER_OR_HUB_ID with both CLIP towers, or image_guidance=false"
        )
    public = next((each for each in family.image_prompts if each.width == taken), family.image_prompts[0])
    found = _clip_folder(public.clip)
    _check_width(adapter, taken, public.clip, found, family)
    return found


def _clip_folder(name: str) -> Path:
    path = local_path(name)
    if not path.is_dir():
        repository, inner = split_hub_id("clip", name)
        patterns = ("*.json", "*.txt", "model*.safetensors", "pytorch_model*.bin")
        path = download(repository, "clip", None, [f"{inner}/{each}" if inner else each for each in patterns]) / inner
    if not (path / "config.json").is_file():
        raise ConfigError(f"clip: got {name!r}, which is no CLIP model; allowed: {CLIPS}")
    return path


def _check_towers(name: str, folder: Path, diffusers_dir: Path, family: Family) -> None:
    """Refuse what has no tower for texts, unless a text encoder of the model is one."""
    if has_both_towers(folder):
        return
    width = _embedding_width(folder)
    if family.shared_space is None or width is None:
        raise ConfigError(f"clip: got {name!r}, which is no CLIP model; allowed: {CLIPS}")
    own = _text_width(diffusers_dir, family)
    if own != width:
        raise ConfigError(
            f"clip: got {name!r}, which has no tower for texts, and embeds pictures in {width} numbers, texts of "
            f"{family.shared_space[0]} in {own}; allowed: {CLIPS}"
        )


def _check_width(adapter: Path, taken: int, name: str, clip: Path, family: Family) -> None:
    """Refuse an image encoder that an adapter was not trained on: the usual mistake."""
    given = _embedding_width(clip)
    if not taken or given is None or given == taken:
        return
    public = next((f", such as {each.clip}" for each in family.image_prompts if each.width == taken), "")
    raise ConfigError(
        f"ip_adapter: got {str(adapter)!r}, which takes embeddings of {taken} numbers, while clip gives {given} ({name}); "
        f"allowed: an IP-Adapter of the plain kind with the CLIP it was trained on{public}"
    )


def _embedding_width(folder: Path) -> int | None:
    """Return of how many numbers a CLIP's or a text encoder's embeddings are; None for what is neither."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    width = read_json("clip", path).get("projection_dim")
    return width if whole(width) else None


def _text_width(diffusers_dir: Path, family: Family) -> int | None:
    return None if family.shared_space is None else _embedding_width(diffusers_dir / family.shared_space[0])


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor of a safetensors file, of which only the header is read; none of another file."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        return {name: list(each["shape"]) for name, each in header.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, MemoryError, OverflowError):
        return {}  # what is wrong with it is told when it is loaded


def has_both_towers(clip: Path) -> bool:
    """Whether a CLIP's folder has a text tower beside the one that sees pictures."""
    return "vision_config" in read_json("clip", clip / "config.json")
