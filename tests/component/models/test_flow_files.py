"""Files of flow models: LoRAs reach their transformers, files of a transformer alone are refused, parts that do not fit too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vimaedit.config import EditConfig, Lora, ModelConfig
from vimaedit.errors import ConfigError
from vimaedit.miniature.random_flow import KINDS, random_flow_bundle
from vimaedit.models.backbone import Networks
from vimaedit.models.files import ModelFacts, recipe_config, resolve_model
from vimaedit.models.networks import load_networks
from vimaedit.recipes import method_config
from vimaedit.step.solvers import num_skipped

Flow = tuple[Networks, ModelFacts]
LAYER = "transformer_blocks.1.attn.to_q"


def load(model: str, **options: object) -> Networks:
    config = ModelConfig(model=model, dtype="float32", device="cpu", **options)
    return load_networks(resolve_model(config, image_guidance=False), config)


def test_a_lora_is_merged_into_the_transformer(flow_model: Flow, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(4, 64, generator=generator), torch.randn(64, 4, generator=generator)
    save_file(
        {f"transformer.{LAYER}.lora_A.weight": down, f"transformer.{LAYER}.lora_B.weight": up}, tmp_path / "lora.safetensors"
    )
    merged = load(flow_model[1].name, lora=[Lora(path=str(tmp_path / "lora.safetensors"), scale=0.5)])
    change = merged.denoiser.get_submodule(LAYER).weight - flow_model[0].denoiser.get_submodule(LAYER).weight
    torch.testing.assert_close(change, 0.5 * up @ down, atol=1e-5, rtol=0)
    assert merged.unmerged == ((),)


@pytest.mark.parametrize(
    ("name", "title"),
    [("double_blocks.0.img_attn.qkv.weight", "FLUX.1"), ("joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3")],
)
def test_a_file_of_a_transformer_alone_is_refused(tmp_path: Path, name: str, title: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({f"model.diffusion_model.{name}": torch.zeros(2)}, path)
    with pytest.raises(
        ConfigError, match=f"model: got the file .*, of a {title}; allowed: a diffusers folder or a hub id of one"
    ):
        resolve_model(ModelConfig(model=str(path)), image_guidance=False)


@pytest.mark.parametrize("name", KINDS)
def test_another_scheduler_or_a_missing_part_is_named(name: str, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(random_flow_bundle(name), tmp_path / "bundle"))
    pipeline = bundle / KINDS[name]
    index = json.loads((pipeline / "model_index.json").read_text())
    (pipeline / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "DDIMScheduler"]}))
    with pytest.raises(ConfigError, match="model: got one that predicts epsilon; allowed: models that predict flow"):
        load(str(bundle))
    (pipeline / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(pipeline / "text_encoder_2")
    with pytest.raises(ConfigError, match="text_encoder_2, which holds no weights"):
        load(str(bundle))


def test_hub_ids_of_published_pipelines_bring_their_own_call() -> None:
    config = recipe_config("black-forest-labs/FLUX.1-Kontext-dev", "pipeline")
    assert (config.steps, config.target_guidance, config.grounding) == (28, 3.5, "difference")
    assert recipe_config("timbrooks/instruct-pix2pix", "pipeline").steps == 100


@pytest.mark.parametrize("name", ["random-flux", "black-forest-labs/FLUX.1-dev", "folder", "bundle"])
def test_options_that_suit_a_family_stand_beneath_a_bundles_own(name: str, tmp_path: Path) -> None:
    given = tmp_path / "bundle"
    if name in ("folder", "bundle"):
        shutil.copytree(random_flow_bundle("random-flux"), given)
        name = str(given / "flux" if name == "folder" else given)
    config = recipe_config(name, "flowedit")
    assert (config.steps, config.source_guidance, config.target_guidance) == (28, 1.5, 5.5)
    assert config.steps - num_skipped(config) == 24
    assert recipe_config(name).target_guidance == 3.5
    if name == str(given):
        stated = json.loads((given / "bundle.json").read_text())
        stated["recipe"] = {"methods": {"flowedit": {"target_guidance": 4.5}}}
        (given / "bundle.json").write_text(json.dumps(stated))
        config = recipe_config(name, "flowedit")
        assert (config.steps, config.target_guidance) == (28, 4.5)


def test_other_families_have_the_published_options() -> None:
    for name in ("random", "random-xl", "random-sd3", "owner/name"):
        assert recipe_config(name, "flowedit") == method_config("flowedit") and recipe_config(name) == EditConfig()
