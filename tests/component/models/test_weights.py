"""Models that are not what they seem: tensors missing, not finite or not used, layouts that are whole all the same, adapters of other kinds."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from pipelines.cluster.workers import Probe, _probe
from tests.component.ldm_checkpoint import write_checkpoint
from vimaedit.config import EditConfig, Lora, ModelConfig
from vimaedit.errors import ConfigError, WrongWeights
from vimaedit.metrics.clip import ClipScore
from vimaedit.miniature.random_bundle import random_bundle
from vimaedit.models.adapters import read_weights
from vimaedit.models.backbone import Networks
from vimaedit.models.files import model_digest, resolve_model
from vimaedit.models.networks import load_networks
from vimaedit.pipeline import ViMAEditPipeline

UNET, VAE = "sd/unet/diffusion_pytorch_model.safetensors", "sd/vae/diffusion_pytorch_model.safetensors"
TEXT, CLIP = "sd/text_encoder/model.safetensors", "clip/model.safetensors"
ADAPTER = "ip_adapter/models/ip-adapter_sd15.safetensors"
FILES = (UNET, VAE, TEXT, CLIP, ADAPTER)
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_bundle(), tmp_path / "bundle"))


@pytest.fixture(scope="module")
def plain() -> Networks:
    """The model as it is, to compare others with."""
    return load("random")


def config_of(bundle: Path | str, **options: object) -> ModelConfig:
    return ModelConfig(**{"model": str(bundle), "device": "cpu", "dtype": "float32", **options})  # type: ignore[arg-type]


def load(bundle: Path | str, **options: object) -> Networks:
    model = config_of(bundle, **options)
    return load_networks(resolve_model(model), model)


def probe(bundle: Path | str, **options: object) -> Probe:
    return _probe(EditConfig(), config_of(bundle, **options), 1, False)


def change(path: Path, how: Callable[[Tensors], Tensors]) -> None:
    save_file(how(load_file(path)), path, metadata={"format": "pt"})


def halved(tensors: Tensors) -> Tensors:
    return {key: tensors[key] for key in sorted(tensors)[::2]}


def with_nan(tensors: Tensors) -> Tensors:
    name = sorted(tensors)[3]
    spoilt = tensors[name].clone()
    spoilt.flatten()[-1] = float("nan")
    return {**tensors, name: spoilt}


def same(own: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = own.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", FILES)
def test_half_the_tensors_are_no_model(bundle: Path, name: str) -> None:
    change(bundle / name, halved)
    option = {CLIP: "clip", ADAPTER: "ip_adapter"}.get(name, "model")
    with pytest.raises(
        WrongWeights, match=rf"^{option}: got .* \d+ of \d+ tensors are missing \(\S+, \S+, \S+, and \d+ more\)"
    ):
        probe(bundle)


@pytest.mark.parametrize("name", FILES)
def test_weights_that_are_not_finite_are_refused(bundle: Path, name: str) -> None:
    change(bundle / name, with_nan)
    option = {CLIP: "clip", ADAPTER: "ip_adapter"}.get(name, "model")
    with pytest.raises(WrongWeights, match=rf"^{option}: got .* 1 of \d+ tensors hold NaN or infinity in float32 \(\S+\)"):
        probe(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_tensor_of_another_shape_is_refused(bundle: Path, name: str) -> None:
    path = bundle / name
    name_of = next(key for key, value in sorted(load_file(path).items()) if value.ndim == 2)
    change(path, lambda tensors: {**tensors, name_of: tensors[name_of][:-1].contiguous()})
    option = {CLIP: "clip", ADAPTER: "ip_adapter"}.get(name, "model")
    with pytest.raises(WrongWeights, match=rf"^{option}: got .* does not load"):
        probe(bundle)


def test_what_a_worker_says_of_a_model_comes_to_the_driver_and_into_json(bundle: Path) -> None:
    change(bundle / TEXT, lambda tensors: {**tensors, "another.weight": torch.ones(3)})
    found = pickle.loads(pickle.dumps(probe(bundle)))
    (told,) = json.loads(json.dumps([dataclasses.asdict(each) for each in found.left_out]))
    assert told == {
        "what": "tensors of text_encoder",
        "count": 1,
        "total": 37,
        "examples": ["another.weight"],
        "reason": "CLIPTextModel has no such weights",
    }


def test_weights_too_large_for_the_precision_are_refused(bundle: Path) -> None:
    change(bundle / UNET, lambda tensors: {**tensors, "conv_out.bias": torch.full_like(tensors["conv_out.bias"], 1e6)})
    load(bundle)
    with pytest.raises(
        WrongWeights, match=r"unet of .*, where 1 of \d+ tensors hold NaN or infinity in float16 \(conv_out.bias\)"
    ):
        load(bundle, dtype="float16")


@pytest.mark.parametrize("name", FILES)
def test_tensors_that_nothing_uses_are_told(bundle: Path, plain: Networks, name: str) -> None:
    assert plain.left_out == ()
    extra = "ip_adapter.99.to_q_ip.weight" if name == ADAPTER else "another.layer.weight"
    change(bundle / name, lambda tensors: {**tensors, extra: torch.ones(3)})
    after = load(bundle)
    (told,) = after.left_out
    assert (told.count, told.examples) == (1, (extra,))
    assert told.total > 15 and re.search(r": 1 of \d+ left out \(" + re.escape(extra) + r"\): ", told.text())
    assert same(plain.denoiser, after.denoiser) and same(
        plain.text_encoders["text_encoder"], after.text_encoders["text_encoder"]
    )


def test_the_scoring_clip_is_held_to_the_same(bundle: Path) -> None:
    change(bundle / CLIP, with_nan)
    with pytest.raises(WrongWeights, match="^scoring_clip: got .* hold NaN or infinity"):
        ClipScore(str(bundle / "clip"))
    change(bundle / CLIP, halved)
    with pytest.raises(WrongWeights, match=r"^scoring_clip: got .* 47 of 94 tensors are missing \("):
        ClipScore(str(bundle / "clip"))


@functools.cache
def lora_tensors() -> Tensors:
    unet = load("random").denoiser
    torch.manual_seed(5)
    unet.add_adapter(LoraConfig(r=3, target_modules=["to_q", "to_v"], init_lora_weights=False))
    return {f"unet.{key}": value.contiguous() for key, value in get_peft_model_state_dict(unet).items()}


def write_lora(path: Path, rename: Callable[[str], str]) -> list[str]:
    tensors = {rename(key): value for key, value in lora_tensors().items()}
    save_file(tensors, path)
    return sorted(tensors)


@pytest.mark.parametrize("prefix", ["transformer", "base_model.model", "model.diffusion_model"])
def test_a_lora_that_reaches_nothing_is_refused(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "lora.safetensors"
    names = write_lora(path, lambda key: key.replace("unet", prefix, 1))
    with pytest.raises(
        WrongWeights, match=rf"^lora: got .*lora.safetensors', of which 0 of {len(names)} keys reach a weight"
    ) as error:
        probe("random", lora=[Lora(path=str(path))])
    assert f"({names[0]}, {names[1]}, {names[2]}, and {len(names) - 3} more)" in str(error.value)


def test_what_of_a_lora_reaches_nothing_is_told_and_no_part_of_the_digest(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    names = write_lora(whole, lambda key: key)
    write_lora(part, lambda key: key.replace("unet.down", "unet.upside_down"))
    lost = [name for name in names if name.startswith("unet.down")]
    full, less, none = (probe("random", lora=lora) for lora in ([Lora(path=str(whole))], [Lora(path=str(part))], []))
    assert full.left_out == () == none.left_out
    (told,) = less.left_out
    assert (told.what, told.count, told.total) == ("keys of the LoRA part.safetensors", len(lost), len(names))
    assert told.examples == tuple(name.replace("unet.down", "unet.upside_down") for name in lost[:3])
    assert len({full.model_digest, less.model_digest, none.model_digest}) == 3
    files = resolve_model(config_of("random", lora=[Lora(path=str(part))]))
    assert less.model_digest != model_digest(files)  # which takes all of the file for merged
    assert full.model_digest == model_digest(resolve_model(config_of("random", lora=[Lora(path=str(whole))])))


def test_a_lora_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    write_lora(path, lambda key: key)
    change(path, with_nan)
    with pytest.raises(WrongWeights, match="^lora: got .* 1 of .* hold NaN or infinity"):
        load("random", lora=[Lora(path=str(path))])


def test_one_picture_is_edited_with_the_same_warning(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(bundle / TEXT, lambda tensors: {**tensors, "another.weight": torch.ones(3)})
    ViMAEditPipeline.from_pretrained(str(bundle), device="cpu")
    assert "tensors of text_encoder: 1 of 37 left out (another.weight): CLIPTextModel has no such weights" in caplog.text


def shard(folder: Path, name: str, suffix: str) -> None:
    """Write a network's weights in two files with an index, as libraries write large ones."""
    whole = next(folder.glob("*.safetensors"))
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    parts = {f"{name}-0000{n + 1}-of-00002.{suffix}": names[n::2] for n in range(2)}
    for file, keys in parts.items():
        chosen = {key: tensors[key] for key in keys}
        if suffix == "bin":
            torch.save(chosen, folder / file)
        else:
            save_file(chosen, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (folder / f"{name}.{suffix}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_in_several_files_are_read(bundle: Path, plain: Networks, suffix: str) -> None:
    shard(bundle / "sd" / "unet", "diffusion_pytorch_model", suffix)
    shard(bundle / "sd" / "text_encoder", {"bin": "pytorch_model", "safetensors": "model"}[suffix], suffix)
    after = load(bundle)
    assert (
        same(plain.denoiser, after.denoiser)
        and same(plain.text_encoders["text_encoder"], after.text_encoders["text_encoder"])
        and after.left_out == ()
    )
    probe(bundle)


def test_only_what_is_used_is_asked_for(bundle: Path, plain: Networks) -> None:
    path = bundle / "sd" / "model_index.json"
    index = json.loads(path.read_text())
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    path.write_text(json.dumps({**index, **checker, "image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}))
    shutil.rmtree(bundle / "sd" / "feature_extractor")
    assert same(load(bundle).denoiser, plain.denoiser)


def test_weights_of_a_variant_alone_are_named(bundle: Path, plain: Networks) -> None:
    for name in (UNET, VAE, TEXT):
        path = bundle / name
        path.rename(path.with_suffix(".fp16.safetensors"))
    with pytest.raises(
        ConfigError, match=r"unet, which holds no weights but those of the variant fp16; allowed: variant=fp16$"
    ):
        probe(bundle)
    assert same(load(bundle, variant="fp16").denoiser, plain.denoiser)


def test_a_variant_that_no_network_has_is_refused(bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"variant: got 'fp16', of which .* has no weights; allowed: nothing, or"):
        probe(bundle, variant="fp16")


def test_nobody_is_advised_to_trust_a_pickle(bundle: Path, tmp_path: Path) -> None:
    torch.save({"weight": Path("x")}, tmp_path / "lora.bin")
    with pytest.raises(ConfigError, match="holds more than tensors") as raised:
        read_weights("lora", tmp_path / "lora.bin")
    assert "weights_only" not in str(raised.value)


def nested(tensors: Tensors) -> dict[str, Tensors]:
    parts: dict[str, Tensors] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in tensors.items():
        part, _, rest = key.partition(".")
        parts[part][rest] = value
    return parts


@pytest.mark.parametrize(
    "place", ["models/ip-adapter_sd15.bin", "ip-adapter_sd15.bin", "ip-adapter_sd15.safetensors", "my.bin"]
)
def test_an_adapter_is_found_in_its_folder(bundle: Path, plain: Networks, tmp_path: Path, place: str) -> None:
    tensors = load_file(bundle / ADAPTER)
    path = tmp_path / "adapter" / place
    path.parent.mkdir(parents=True)
    if path.suffix == ".bin":
        torch.save(nested(tensors), path)
    else:
        save_file(tensors, path)
    after = load(bundle, ip_adapter=str(tmp_path / "adapter"))
    assert same(plain.denoiser, after.denoiser)


def test_a_folder_without_one_adapter_says_what_it_holds(bundle: Path, tmp_path: Path) -> None:
    for name in ("a.bin", "b.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        ConfigError, match=r"^ip_adapter: got the folder .*, which holds 2 adapters \(a.bin, b.safetensors\); allowed: "
    ):
        resolve_model(config_of(bundle, ip_adapter=str(tmp_path)))


@pytest.mark.parametrize(
    ("projection", "reason"),
    [
        ({"latents": torch.ones(1, 16, 8), "proj_in.weight": torch.ones(8, 8)}, "of the plus kind, which reads every patch"),
        ({"proj.0.weight": torch.ones(8, 8), "proj.3.weight": torch.ones(8, 8)}, "of the full or FaceID kind"),
    ],
)
def test_an_adapter_of_another_kind_is_refused_with_the_reason(
    bundle: Path, tmp_path: Path, projection: Tensors, reason: str
) -> None:
    attention = {key: value for key, value in load_file(bundle / ADAPTER).items() if key.startswith("ip_adapter.")}
    save_file({**attention, **{f"image_proj.{key}": value for key, value in projection.items()}}, tmp_path / "plus.safetensors")
    with pytest.raises(
        ConfigError, match=f"^ip_adapter: got .*plus.safetensors', {reason}.*; allowed: an IP-Adapter of the plain kind"
    ):
        load(bundle, ip_adapter=str(tmp_path / "plus.safetensors"))


def test_a_checkpoint_file_is_accounted_for(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_checkpoint(bundle / "sd", path, layers=1, levels=3)
    rest = {"ip_adapter": str(bundle / "ip_adapter"), "clip": str(bundle / "clip"), "model_config": str(bundle / "sd")}
    change(path, lambda tensors: {**tensors, "betas": torch.ones(1000), "sqrt_alphas_cumprod": torch.ones(1000)})
    assert load(path, **rest).left_out == ()
    extra = ("control_model.conv.weight", "model.diffusion_model.another.weight")
    change(path, lambda tensors: {**tensors, **{name: torch.full((3,), 0.123) for name in extra}})
    (told,) = load(path, **rest).left_out
    assert (told.what, told.count, told.examples) == ("tensors of model.safetensors", 2, extra)
    for prefix in ("model.diffusion_model.", "first_stage_model.", "cond_stage_model."):
        write_checkpoint(bundle / "sd", path, layers=1, levels=3)
        lost = sorted(name for name in load_file(path) if name.startswith(prefix))[5]
        change(path, lambda tensors, lost=lost: {key: value for key, value in tensors.items() if key != lost})  # type: ignore[misc]
        with pytest.raises(ConfigError, match="^model: got .* does not load"):
            load(path, **rest)
