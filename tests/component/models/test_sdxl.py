"""Stable Diffusion XL, the second family: what its rows are conditioned on, its adapters, LoRAs and checkpoint files, its editors."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from tests.component.conftest import PAIRS, SMALL, picture, request
from tests.component.ldm_checkpoint import write_checkpoint
from vimaedit.attention.sites import list_sites
from vimaedit.config import EditConfig, Lora, ModelConfig
from vimaedit.engine.editor import BatchEditor
from vimaedit.errors import ConfigError
from vimaedit.methods import METHODS
from vimaedit.methods.fit import why_not
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.models.conditioning import Conditioning
from vimaedit.models.files import ModelFacts, ModelFiles, model_facts, resolve_model
from vimaedit.models.networks import load_networks
from vimaedit.recipes import method_config
from vimaedit.step.rows import RowKind

MODEL = ModelConfig(model="random-xl", dtype="float32", device="cpu")
Make = Callable[..., BatchEditor]


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return resolve_model(MODEL)


@pytest.fixture(scope="module")
def xl(files: ModelFiles) -> tuple[Networks, ModelFacts]:
    return load_networks(files, MODEL), model_facts(files)


@pytest.fixture
def make(xl: tuple[Networks, ModelFacts]) -> Make:
    def build(method: str = "vimaedit", **options: Any) -> BatchEditor:
        reads_pictures = METHODS[method].routing == "weights"
        config = method_config(method, **{"steps": 2, "canvas": SMALL, "image_guidance": reads_pictures, **options})
        return BatchEditor(Backbone(xl[0], config), config, xl[1])

    return build


def rows_of(editor: BatchEditor, kind: RowKind, **options: Any) -> Conditioning:
    batch = editor.encode([editor.prepare(request(0, **options))])
    return batch.conditioning.rows(batch.layout.block(kind))


def test_rows_read_both_encoders_the_pooled_text_and_the_sizes(make: Make, xl: tuple[Networks, ModelFacts]) -> None:
    editor = make(canvas={"fit": "keep"})
    row = rows_of(editor, RowKind.TARGET_COND, image=picture(0, 192, 96), given_mask=None)
    ids = xl[0].tokenize([PAIRS[0][1]])
    states = [encoder(ids[name], output_hidden_states=True) for name, encoder in xl[0].text_encoders.items()]
    torch.testing.assert_close(row["text"], torch.cat([each.hidden_states[-2] for each in states], dim=-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(row["text_embeds"], states[1].text_embeds, rtol=0, atol=1e-5)
    width, height = editor.canvas.canvas_of((192, 96))
    assert width != height and row["time_ids"].tolist() == [[height, width, 0, 0, height, width]]
    editor = make("leditspp", quirks=["leditspp-sizes"], canvas={"fit": "keep"})
    turned = rows_of(editor, RowKind.TARGET_COND, image=picture(0, 192, 96), given_mask=None)
    assert turned["time_ids"].tolist() == [[width, height, 0, 0, width, height]]


def test_each_tokenizer_pads_in_its_own_way(xl: tuple[Networks, ModelFacts]) -> None:
    first, second = xl[0].tokenize(["a red circle"]).values()
    count = int((first[0] != first[0, -1]).sum()) + 1  # up to the end token, with which the first pads
    assert torch.equal(first[0, :count], second[0, :count])
    assert (first[0, count:] == first[0, count - 1]).all() and (
        second[0, count:] == xl[0].tokenizers["text_encoder_2"].pad_token_id
    ).all()
    assert int(second[0, -1]) != int(first[0, -1])


def test_a_row_without_text_reads_zeros_and_an_empty_text_is_text(make: Make) -> None:
    none, empty = (rows_of(make(negative_prompt=given), RowKind.TARGET_UNCOND) for given in (None, ""))
    assert not none["text"].any() and not none["text_embeds"].any()
    assert empty["text"].abs().max() > 0.1 and torch.equal(none["time_ids"], empty["time_ids"])
    source = rows_of(make(source_guidance=2.0, negative_prompt=""), RowKind.SOURCE_UNCOND)
    assert not source["text"].any()  # the source is given no negative prompt


def test_windows_act_at_a_quarter_of_the_side(make: Make, xl: tuple[Networks, ModelFacts]) -> None:
    sides = {site.name: site.side for site in list_sites(xl[0].denoiser)}
    sites = make().backbone.sites
    assert sorted({*sides.values()}) == [0.25, 0.5] and {sides[name] for name in sites.self_routing} == {0.25}
    assert {sides[name] for name in sites.image_routing} == {0.25}
    assert sites.before_text == frozenset()  # text comes in with the timestep


@pytest.mark.parametrize("method", METHODS)
def test_every_editor_runs_alone_as_beside_others(make: Make, method: str) -> None:
    if why_not(METHODS[method], str(METHODS[method].defaults.get("grounding", "vimaedit")), make().backbone.family.kind):
        with pytest.raises(ConfigError, match=f"^method: got {method} .*, where it has no meaning: "):
            make(method)
        return
    editor = make(method, prompt_learning={"passes": 2}, null_text={"steps": 2})
    alone, pair = editor([request(1)]), editor([request(0), request(1)])
    assert all(result is not None and result.status == "ok" for result in (*alone, *pair))
    own, other = (result.image.astype(int) for result in (alone[0], pair[1]))
    assert (np.abs(own - other) <= 1).mean() > 0.95 and own.std() > 10
    assert not np.array_equal(alone[0].image, alone[0].source)


def test_pictures_that_are_too_many_at_once_are_coded_in_parts(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make().backbone
    pictures = np.stack([picture(n) for n in range(3)])
    whole = backbone.encode_images(pictures)
    drawn, _ = backbone.decode_latents(whole)
    calls: list[int] = []
    hook = backbone.networks.vae.decoder.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    monkeypatch.setattr("vimaedit.models.backbone.MOST_AUTOENCODED", 2 * 128 * 128 * 4)
    try:
        torch.testing.assert_close(backbone.encode_images(pictures), whole, rtol=0, atol=1e-4)
        again, finite = backbone.decode_latents(whole)
    finally:
        hook.remove()
    assert calls == [2, 1] and finite.all() and np.abs(again.astype(int) - drawn).max() <= 1


def test_float16_leaves_the_autoencoder_in_float32(files: ModelFiles) -> None:
    half = load_networks(files, dataclasses.replace(MODEL, dtype="float16"))
    assert half.denoiser.dtype == half.text_encoders["text_encoder_2"].dtype == torch.float16
    assert half.vae.dtype == torch.float32


def test_a_lora_reaches_both_text_encoders(files: ModelFiles, tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    layers: dict[str, Any] = {}
    networks = load_networks(files, MODEL)
    adapted = {"unet": networks.denoiser, **networks.text_encoders}
    for name, network in adapted.items():
        targets = ["to_q"] if name == "unet" else ["q_proj"]
        network.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(network)
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, **layers, weight_name="both.safetensors")
    plain = load_networks(files, MODEL)
    merged = load_networks(*_with_lora(str(tmp_path / "both.safetensors")))
    assert merged.unmerged == ((),) and merged.left_out == ()
    for name, network in {"unet": merged.denoiser, **merged.text_encoders}.items():
        before = {"unet": plain.denoiser, **plain.text_encoders}[name].state_dict()
        moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
        assert moved and all(re.search(r"to_q|q_proj", key) for key in moved), name


def _with_lora(path: str) -> tuple[ModelFiles, ModelConfig]:
    model = dataclasses.replace(MODEL, lora=[Lora(path=path)])
    return resolve_model(model), model


def test_a_checkpoint_file_holds_the_same_networks(files: ModelFiles, xl: tuple[Networks, ModelFacts], tmp_path: Path) -> None:
    write_checkpoint(files.diffusers, tmp_path / "model.safetensors", layers=1, levels=3)
    model = ModelConfig(model=str(tmp_path / "model.safetensors"), model_config=str(files.diffusers), device="cpu")
    found = resolve_model(model, image_guidance=False)
    single = load_networks(found, model)
    assert found.family is files.family and single.left_out == () and single.zeroes_nothing
    pairs = zip([single.vae, *single.text_encoders.values()], [xl[0].vae, *xl[0].text_encoders.values()], strict=True)
    for own, other in pairs:
        wanted = other.state_dict()
        assert all(torch.equal(value, wanted[key]) for key, value in own.state_dict().items())


def test_a_checkpoint_file_tells_its_family(files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vimaedit.models import files as module

    write_checkpoint(files.diffusers, tmp_path / "model.safetensors", layers=1, levels=3)
    asked: list[str] = []
    monkeypatch.setattr(module, "download", lambda repository, *rest: asked.append(repository) or files.diffusers)
    resolve_model(ModelConfig(model=str(tmp_path / "model.safetensors")), image_guidance=False)
    assert asked == ["stabilityai/stable-diffusion-xl-base-1.0"]


@pytest.fixture
def layouts(oracle: Path) -> Path:
    """A bundle with adapters of both layouts: one takes 32 numbers of `clip`, one 40, those of the second text encoder."""
    return oracle / "sdxl" / "models"


def test_the_second_layouts_texts_are_those_of_the_models_own_encoder(layouts: Path) -> None:
    model = ModelConfig(
        model=str(layouts), ip_adapter=str(layouts / "ip_adapter/sdxl_models/ip-adapter_sdxl.safetensors"), device="cpu"
    )
    files = resolve_model(model)
    assert files.clip == layouts / "ip_adapter/sdxl_models/image_encoder"
    networks = load_networks(files, model)
    assert networks.clip_tokenizer is None
    backbone = Backbone(networks, EditConfig())
    texts = backbone.encode_texts(["a cat"])["text_embeds"]
    assert torch.equal(backbone.embed_texts(["a cat"]), texts) and texts.shape == (1, 40)
    assert backbone.embed_images(np.zeros((1, 224, 224, 3), dtype=np.uint8)).shape == (1, 40)
    assert resolve_model(ModelConfig(model=str(layouts))).clip == layouts / "clip"


@pytest.mark.parametrize(
    ("adapter", "clip", "text"),
    [
        ("ip-adapter_sdxl.safetensors", "clip", "takes embeddings of 40 numbers, while clip gives 32 ("),
        ("ip-adapter_sdxl_vit-h.safetensors", "ip_adapter/sdxl_models/image_encoder", "takes embeddings of 32 numbers, while clip gives 40 ("),
        ("ip-adapter_sdxl_vit-h.safetensors", "ip_adapter/models/image_encoder", "has no tower for texts, and embeds pictures in 32 numbers, texts of text_encoder_2 in 40"),
    ],
)  # fmt: skip
def test_the_wrong_image_encoder_is_refused_by_name(layouts: Path, adapter: str, clip: str, text: str) -> None:
    paths = {"ip_adapter": str(layouts / "ip_adapter/sdxl_models" / adapter), "clip": str(layouts / clip)}
    with pytest.raises(ConfigError, match=re.escape(text)) as refused:
        resolve_model(ModelConfig(model=str(layouts), **paths))
    assert clip in str(refused.value) and ("no tower" in text or adapter in str(refused.value))


def test_another_unet_alone_takes_no_public_adapter(files: ModelFiles, tmp_path: Path) -> None:
    folder = shutil.copytree(files.diffusers, tmp_path / "folder")
    with pytest.raises(ConfigError, match="^ip_adapter: got nothing, and "):
        resolve_model(ModelConfig(model=str(folder)))
