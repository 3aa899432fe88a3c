"""Every way to name a model, with real files; what does not fit is refused before any work."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from tests.component.conftest import request
from tests.component.ldm_checkpoint import write_checkpoint
from vimaedit.attention.sites import list_sites
from vimaedit.config import EditConfig, GroundingSides, Lora, ModelConfig
from vimaedit.engine.load import load_editor
from vimaedit.errors import ConfigError
from vimaedit.miniature.random_bundle import random_bundle
from vimaedit.models import files as model_files
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.models.conditioning import Conditioning
from vimaedit.models.files import bytes_loaded, model_digest, model_facts, resolve_model, weights_gib
from vimaedit.models.networks import choose_device, load_networks
from vimaedit.models.sd1 import SD1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a private copy of the random model's bundle."""
    return Path(shutil.copytree(random_bundle(), tmp_path_factory.mktemp("models") / "bundle"))


def load(**options: object) -> Networks:
    model = ModelConfig(**{"device": "cpu", "dtype": "float32", **options})  # type: ignore[arg-type]
    return load_networks(resolve_model(model, image_guidance=False), model)


def same_weights(own: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = own.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_facts_come_from_the_configs(bundle: Path) -> None:
    facts = model_facts(resolve_model(ModelConfig(model=str(bundle))))
    assert (facts.canvas_size, facts.granularity, facts.clip_side) == (128, 32, 64)
    assert facts.warning is not None and "mean nothing" in facts.warning


def test_a_bundle_and_its_parts_named_one_by_one_have_the_same_weights(bundle: Path) -> None:
    whole = resolve_model(ModelConfig(model=str(bundle)))
    parts = resolve_model(
        ModelConfig(model=str(bundle / "sd"), ip_adapter=str(bundle / "ip_adapter"), clip=str(bundle / "clip"))
    )
    assert model_digest(whole) != model_digest(parts)  # it states grounding sides of its own
    assert model_digest(dataclasses.replace(whole, bundle={})) == model_digest(parts)
    assert (whole.ip_adapter, whole.clip) == (parts.ip_adapter, parts.clip)
    assert same_weights(load(model=str(bundle)).denoiser, load(model=str(bundle / "sd")).denoiser)


def weights_of(networks: Networks) -> list[torch.nn.Module]:
    return [networks.denoiser, networks.vae, *networks.text_encoders.values()]


def test_a_single_checkpoint_file_holds_the_same_networks(bundle: Path, tmp_path: Path) -> None:
    write_checkpoint(bundle / "sd", tmp_path / "model.safetensors", layers=1, levels=3)
    single = load(model=str(tmp_path / "model.safetensors"), model_config=str(bundle / "sd"))
    folder = load(model=str(bundle / "sd"))
    for own, other in zip(weights_of(single), weights_of(folder), strict=True):
        assert same_weights(own, other)
    assert single.alphas_cumprod.tolist() == folder.alphas_cumprod.tolist()


def test_half_precision_keeps_clip_whole(bundle: Path) -> None:
    model = ModelConfig(model=str(bundle), device="cpu", dtype="bfloat16")
    networks = load_networks(resolve_model(model), model)
    assert networks.denoiser.dtype == networks.vae.dtype == networks.text_encoders["text_encoder"].dtype == torch.bfloat16
    assert networks.clip is not None and networks.clip.dtype == torch.float32


def write_lora(folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    unet = load(model="random").denoiser
    unet.add_adapter(LoraConfig(r=3, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))


def test_loras_are_merged_with_their_scale_and_change_the_digest(tmp_path: Path) -> None:
    torch.manual_seed(5)
    write_lora(tmp_path)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    plain = load(model="random").denoiser.get_parameter(name)
    full, half, none = (
        load(model="random", lora=[Lora(path=str(tmp_path), scale=s)]).denoiser.get_parameter(name) for s in (1.0, 0.5, 0.0)
    )
    assert not torch.equal(plain, full)
    torch.testing.assert_close(half - plain, 0.5 * (full - plain), atol=1e-6, rtol=0)
    torch.testing.assert_close(none, plain)
    file = next(tmp_path.glob("*.safetensors"))
    digests = {
        model_digest(resolve_model(ModelConfig(model="random", lora=lora), image_guidance=False))
        for lora in ([], [Lora(path=str(tmp_path))], [Lora(path=str(tmp_path), scale=0.5)])
    }
    assert len(digests) == 3 and file.is_file()


def test_the_digest_follows_the_contents_of_the_weights(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    before = model_digest(resolve_model(ModelConfig(model=str(copy))))
    assert before == model_digest(resolve_model(ModelConfig(model=str(bundle))))
    weights = copy / "ip_adapter" / "models" / "ip-adapter_sd15.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert model_digest(resolve_model(ModelConfig(model=str(copy)))) != before


REFUSED = [
    ({"model": "nowhere/at/all.bin"}, "model: got 'nowhere/at/all.bin', which is no file or folder here"),
    (
        {"model": "/no/such/folder"},
        r"model: got '/no/such/folder', which is no file or folder here; allowed: miniature, random, .*a bundle folder",
    ),
    ({"model": "{tmp}"}, "without model_index.json; allowed: a bundle or diffusers folder"),
    ({"model": "{tmp}/weights.bin"}, r"allowed: a checkpoint ending in .safetensors, .ckpt"),
    ({"model": "{bundle}/sd"}, r"ip_adapter: got nothing, and '.*sd' brings none; allowed: .*image_guidance=false"),
    ({"model": "{bundle}/sd", "ip_adapter": "{bundle}/ip_adapter"}, r"clip: got nothing, and '.*sd' brings none"),
    ({"model": "{bundle}", "clip": "{bundle}/sd"}, r"clip: got '.*sd', which is no CLIP model|config.json cannot be read"),
    ({"model": "{bundle}", "lora": [Lora(path="/no/such")]}, "lora: got '/no/such', which is no file or folder here"),
    ({"model": "{bundle}", "revision": "x"}, r"^revision: got 'x' with model=.*; allowed: nothing, but for a hub id"),
    ({"model": "random", "revision": "x"}, r"^revision: got 'x' with model=random; allowed: nothing, but for a hub id"),
    (
        {"model": "{bundle}", "model_config": "/x"},
        r"^model_config: got '/x' with model=.*; allowed: nothing, but for a checkpoint file",
    ),
    ({"model": "{tmp}/weights.safetensors", "model_config": "{tmp}"}, r"model_config: got .* which holds no model_index.json"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_models_that_cannot_be(bundle: Path, tmp_path: Path, options: dict[str, object], text: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    filled = {
        key: value.format(bundle=bundle, tmp=tmp_path) if isinstance(value, str) else value for key, value in options.items()
    }
    with pytest.raises(ConfigError, match=text):
        resolve_model(ModelConfig(**filled))  # type: ignore[arg-type]


def test_other_families_are_named(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle / "sd", tmp_path / "xl"))
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionXLInpaintPipeline"}))
    with pytest.raises(
        ConfigError, match="model: got a StableDiffusionXLInpaintPipeline; allowed: models of the Stable Diffusion 1.x layout"
    ):
        resolve_model(ModelConfig(model=str(copy)))


def test_a_second_family_is_known_by_its_entry_alone(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = dataclasses.replace(
        SD1, title="Wide Diffusion", layouts=("WidePipeline",), window_side=0.25, self_side=1.0, cross_side=0.5
    )
    monkeypatch.setattr(model_files, "FAMILIES", (SD1, wide))
    copy = Path(shutil.copytree(bundle / "sd", tmp_path / "wide"))
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": "WidePipeline"}))
    model = ModelConfig(model=str(copy), device="cpu")
    files = resolve_model(model, image_guidance=False)
    assert files.family is wide and resolve_model(ModelConfig(model=str(bundle))).family is SD1
    backbone = Backbone(load_networks(files, model), EditConfig(image_guidance=False))
    sides = {site.name: site.side for site in list_sites(backbone.networks.denoiser)}
    assert (backbone.self_side, backbone.cross_side) == (1.0, 0.5)
    assert {sides[name] for name in backbone.sites.self_routing} == {0.25}
    assert {sides[name] for name in backbone.sites.self_maps} == {1.0}
    assert {sides[name] for name in backbone.sites.text_maps} == {0.5}


def test_a_hub_id_is_found_in_the_hubs_cache(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name, layout in (("good", "StableDiffusionPipeline"), ("other", "KandinskyPipeline")):
        repository = tmp_path / f"models--owner--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        snapshot = Path(shutil.copytree(bundle / "sd", repository / "snapshots" / ("0" * 40)))
        index = json.loads((snapshot / "model_index.json").read_text())
        (snapshot / "model_index.json").write_text(json.dumps({**index, "_class_name": layout}))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    files = resolve_model(ModelConfig(model="owner/good"), image_guidance=False)
    assert files.diffusers == tmp_path / "models--owner--good" / "snapshots" / ("0" * 40)
    with pytest.raises(ConfigError, match="^model: got a KandinskyPipeline; allowed: "):
        resolve_model(ModelConfig(model="owner/other"), image_guidance=False)
    (tmp_path / "models--owner--other" / "snapshots" / ("0" * 40) / "model_index.json").unlink()
    with pytest.raises(ConfigError, match="^model: got the folder 'owner/other' without model_index.json; allowed: "):
        resolve_model(ModelConfig(model="owner/other"), image_guidance=False)
    with pytest.raises(ConfigError, match="^model: got the hub id 'owner/none', which cannot be had: "):
        resolve_model(ModelConfig(model="owner/none"), image_guidance=False)


def with_prediction(bundle: Path, folder: Path, prediction: str) -> str:
    copy = Path(shutil.copytree(bundle / "sd", folder / prediction))
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": prediction}))
    return str(copy)


def test_a_velocity_becomes_the_noise_that_the_stock_scheduler_sees(bundle: Path, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    config = EditConfig(image_guidance=False, grounding_sides=GroundingSides(self=0.5, cross=0.5))
    velocity_of, noise_of = (
        Backbone(load_networks(resolve_model(model, image_guidance=False), model), config)
        for model in (
            ModelConfig(model=with_prediction(bundle, tmp_path, name), device="cpu") for name in ("epsilon", "v_prediction")
        )
    )
    scheduler = DDIMScheduler.from_pretrained(str(tmp_path / "v_prediction" / "scheduler"))
    scheduler.set_timesteps(50)
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 16, 16, generator=generator)
    conditioning = Conditioning({"text": torch.randn(2, 77, 64, generator=generator)})
    for timestep in (981, 501, 1):
        time = torch.tensor(timestep)
        velocity = velocity_of.predict(noisy, time, conditioning, None)  # the same weights: what the network gives
        clean = scheduler.step(velocity, timestep, noisy).pred_original_sample
        alpha = scheduler.alphas_cumprod[timestep]
        wanted = (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        noise = noise_of.predict(noisy, time, conditioning, None)
        assert noise.dtype == torch.float32
        assert torch.allclose(noise, wanted, atol=2e-4)
        assert not torch.allclose(noise, velocity, atol=0.1)


def test_models_that_predict_something_else_are_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="model: got one that predicts sample; allowed: models that predict epsilon or v_pred"
    ):
        load(model=with_prediction(bundle, tmp_path, "sample"))


def test_an_adapter_for_another_clip_is_refused(bundle: Path, oracle: Path) -> None:
    model = ModelConfig(model=str(bundle), clip=str(oracle / "models" / "clip"), device="cpu")
    with pytest.raises(ConfigError, match="ip_adapter: got .* which takes embeddings of 48 numbers, while clip gives 32"):
        load_networks(resolve_model(model), model)


def test_broken_weights_are_a_configuration_error(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle / "sd", tmp_path / "broken"))
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="model: got .* which does not load"):
        load(model=str(copy))


@pytest.mark.parametrize("part", ["ip_adapter/models/ip-adapter_sd15.safetensors", "clip/model.safetensors"])
def test_broken_side_models_are_a_configuration_error(bundle: Path, tmp_path: Path, part: str) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "broken"))
    (copy / part).write_bytes((copy / part).read_bytes()[:1000])
    model = ModelConfig(model=str(copy), device="cpu")
    with pytest.raises(ConfigError, match=f"{part.split('/')[0]}: got .* which does not load"):
        load_networks(resolve_model(model), model)


@pytest.mark.parametrize(("part", "option"), [("sd/tokenizer", "model"), ("clip", "clip")])
def test_a_tokenizer_without_its_vocabulary_is_refused(bundle: Path, tmp_path: Path, part: str, option: str) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "broken"))
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        (copy / part / name).unlink(missing_ok=True)
    model = ModelConfig(model=str(copy), device="cpu")
    with pytest.raises(ConfigError, match=f"{option}: got (a tokenizer of .* for a text encoder of|.* which does not load)"):
        load_networks(resolve_model(model), model)


def test_the_length_of_prompts_is_the_text_encoders(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle / "sd", tmp_path / "unstated"))
    path = copy / "tokenizer" / "tokenizer_config.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "model_max_length"})
    )
    assert load(model=str(copy)).tokenizer.model_max_length == 77


def test_a_lora_folder_holds_one_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match="holds 2 .safetensors files; allowed: one, or the path of one"):
        resolve_model(ModelConfig(model="random", lora=[Lora(path=str(tmp_path))]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(ConfigError, match="device: got cuda:1, but this process sees 0 CUDA devices; allowed: cpu, or auto"):
        choose_device("cuda:1")


def test_encoders_that_wait_leave_their_room_to_the_passes() -> None:
    files = resolve_model(ModelConfig(model="random-sd3"))
    everything, without = (weights_gib(files, "float32", offload) for offload in ("none", "encoders"))
    encoders = [path for each in files.family.text_encoders for path in (files.diffusers / each.network).glob("*.safetensors")]
    assert everything - without == pytest.approx(sum(bytes_loaded(path, 4) for path in encoders) / 2**30)
    assert 0 < without < everything


def test_grounding_sides_that_are_not_there_are_refused() -> None:
    config = EditConfig(grounding_sides=GroundingSides(cross=0.125))
    with pytest.raises(
        ConfigError, match=r"grounding_sides.cross: got 0.125, where this model has no such layer; allowed: 1.0, 0.5"
    ):
        load_editor(config, ModelConfig(model="random", device="cpu"))
    with pytest.raises(ConfigError, match="grounding_blocks: got 7; allowed: none, layers .* are chosen by grounding_sides"):
        load_editor(EditConfig(grounding_blocks=[7]), ModelConfig(model="random", device="cpu"))


def test_without_an_adapter_only_image_guidance_false_runs(bundle: Path) -> None:
    sides = GroundingSides(self=0.5, cross=0.5)  # the bundle states them, its diffusers folder alone does not
    config = EditConfig(image_guidance=False, steps=1, grounding_sides=sides)
    editor = load_editor(config, ModelConfig(model=str(bundle / "sd"), device="cpu"))
    (result,) = editor([request(0)])
    assert result is not None and result.status == "ok"


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("sd/vae/config.json", "scaling_factor", 1.7),
        ("sd/scheduler/scheduler_config.json", "prediction_type", "v_prediction"),
        ("clip/preprocessor_config.json", "image_std", [1, 1, 1]),
        ("bundle.json", "canvas_size", 256),
    ],
)
def test_how_weights_are_used_is_of_the_digest(bundle: Path, tmp_path: Path, file: str, name: str, value: Any) -> None:
    shutil.copytree(bundle, tmp_path / "other")
    model = ModelConfig(model=str(tmp_path / "other"))
    before = model_digest(resolve_model(model))
    content = json.loads((tmp_path / "other" / file).read_text())
    (tmp_path / "other" / file).write_text(json.dumps({**content, name: value}))
    assert model_digest(resolve_model(model)) != before
