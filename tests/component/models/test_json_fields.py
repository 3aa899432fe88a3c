"""A model's JSON files with fields of other types: whatever does not load is a ConfigError that names the file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vimaedit.config import EditConfig, ModelConfig
from vimaedit.errors import ConfigError
from vimaedit.miniature.random_bundle import random_bundle
from vimaedit.models.backbone import Backbone
from vimaedit.models.files import bundle_recipe, model_digest, model_facts, recipe_config, resolve_model
from vimaedit.models.networks import load_networks

WRONG: tuple[Any, ...] = ("x", -1, 0.37, [], ["x"], {}, {"x": 1}, True, None)
FILES = (
    "bundle.json",
    "sd/model_index.json",
    "sd/scheduler/scheduler_config.json",
    "sd/unet/config.json",
    "sd/vae/config.json",
    "sd/text_encoder/config.json",
    "sd/tokenizer/tokenizer_config.json",
    "sd/tokenizer/special_tokens_map.json",
    "sd/tokenizer/vocab.json",
    "clip/config.json",
    "clip/preprocessor_config.json",
    "clip/tokenizer_config.json",
    "clip/special_tokens_map.json",
    "clip/vocab.json",
)
FEW = 5  # fields of a file in the usual tests, each with one wrong value
WHOLE = "vocab.json"  # of thousands of fields that mean the same


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(random_bundle(), tmp_path_factory.mktemp("models") / "bundle"))


def paths_of(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Name every field of nested objects."""
    for key, value in content.items() if isinstance(content, dict) else ():
        yield (*path, key)
        yield from paths_of(value, (*path, key))


def drawn(name: str, field: tuple[str, ...]) -> int:
    """Return a number that is the same every time."""
    return int.from_bytes(hashlib.sha256(f"{name}{field}".encode()).digest()[:4])


def with_field(content: Any, path: tuple[str, ...], value: Any) -> Any:
    if not path:
        return value
    return {**content, path[0]: with_field(content[path[0]], path[1:], value)}


def use(bundle: Path) -> None:
    """Do with a model what a run does before its first edit."""
    model = ModelConfig(model=str(bundle), device="cpu", dtype="float32")
    recipe_config(str(bundle))
    bundle_recipe(str(bundle))
    files = resolve_model(model)
    model_facts(files)
    model_digest(files)
    Backbone(load_networks(files, model), EditConfig())


def spoilt(bundle: Path, name: str, *, each: bool) -> Iterator[tuple[tuple[str, ...], Any, str | None]]:
    """Use the model with fields of a file wrong (every wrong value of every field, or one of a few); tell what came of it."""
    path = bundle / name
    text = path.read_text()
    content = json.loads(text)
    fields = [()] if path.name == WHOLE else [(), *paths_of(content)]
    if not each:
        fields = sorted(fields, key=lambda field: drawn(name, field))[:FEW]
    try:
        for field in fields:
            for wrong in WRONG if each else (WRONG[drawn(name, field) % len(WRONG)],):
                path.write_text(json.dumps(with_field(content, field, wrong)))
                try:
                    use(bundle)
                    said = None
                except ConfigError as error:
                    said = str(error)
                yield field, wrong, said
    finally:
        path.write_text(text)


def check(bundle: Path, name: str, *, each: bool) -> None:
    place = Path(name)
    for field, wrong, said in spoilt(bundle, name, each=each):
        if said is None or place.name in said:
            continue
        assert said.startswith("grounding_sides."), (field, wrong, said)  # not stated, so it is the family's that does not fit


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_field_is_a_configuration_error_that_names_the_file(bundle: Path, name: str) -> None:
    check(bundle, name, each=False)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", FILES)
def test_every_wrong_value_of_every_field(bundle: Path, name: str) -> None:
    check(bundle, name, each=True)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("bundle.json", "canvas_size", 10**8),
        ("bundle.json", "grounding_sides", {"self": 7}),
        ("sd/scheduler/scheduler_config.json", "num_train_timesteps", 1),
        ("sd/scheduler/scheduler_config.json", "num_train_timesteps", 10**12),
        ("sd/unet/config.json", "layers_per_block", -1),
        ("sd/tokenizer/special_tokens_map.json", "pad_token", None),
    ],
)
def test_a_value_of_the_right_type_that_cannot_be_is_told_with_its_file(
    bundle: Path, name: str, field: str, value: object
) -> None:
    path = bundle / name
    text = path.read_text()
    path.write_text(json.dumps({**json.loads(text), field: value}))
    try:
        with pytest.raises(ConfigError, match=path.name):
            use(bundle)
    finally:
        path.write_text(text)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    given = Path(shutil.copytree(random_bundle(), tmp_path / "bundle"))
    (given / "bundle.json").unlink()
    os.mkfifo(given / "bundle.json")
    with pytest.raises(ConfigError, match=r"bundle/bundle\.json cannot be read: it is no ordinary file"):
        use(given)
