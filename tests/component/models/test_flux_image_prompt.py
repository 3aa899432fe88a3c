"""An IP-Adapter of FLUX's kind on the built-in FLUX: its file as published, its attention as the stock processor's, its place in an edit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.component.conftest import request
from vimaedit.attention.control import plain_control
from vimaedit.attention.processor import uninstall
from vimaedit.config import EditConfig, ModelConfig
from vimaedit.engine.editor import BatchEditor
from vimaedit.errors import ConfigError
from vimaedit.miniature.random_bundle import random_bundle
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.models.files import ModelFacts, model_facts, resolve_model
from vimaedit.models.networks import load_networks
from vimaedit.recipes import method_config
from vimaedit.step.rows import RowKind

WIDTH, EMBEDDING, TOKENS = 64, 48, 4
Flux = tuple[Networks, ModelFacts]


def adapter_tensors() -> dict[str, torch.Tensor]:
    """Draw an adapter under the names of its program."""
    generator = torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {
        "ip_adapter_proj_model.proj.weight": (TOKENS * WIDTH, EMBEDDING),
        "ip_adapter_proj_model.proj.bias": (TOKENS * WIDTH,),
        "ip_adapter_proj_model.norm.weight": (WIDTH,),
        "ip_adapter_proj_model.norm.bias": (WIDTH,),
    }
    for block in range(2):
        for part in "kv":
            layer = f"double_blocks.{block}.processor.ip_adapter_double_stream_{part}_proj"
            shapes |= {f"{layer}.weight": (WIDTH, WIDTH), f"{layer}.bias": (WIDTH,)}
    return {name: torch.randn(shape, generator=generator) / 8 for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    path = tmp_path_factory.mktemp("adapter") / "ip_adapter.safetensors"
    save_file(adapter_tensors(), path)
    clip = str(random_bundle() / "clip")
    return ModelConfig(model="random-flux", ip_adapter=str(path), clip=clip, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def flux(model: ModelConfig) -> Flux:
    files = resolve_model(model)
    return load_networks(files, model), model_facts(files)


def test_it_is_loaded_whole_and_attends_as_the_stock_processor(flux: Flux) -> None:
    networks = flux[0]
    assert networks.left_out == () and networks.clip is not None
    backbone = Backbone(networks, EditConfig())
    x = torch.randn(2, 16, 6, 8, generator=torch.Generator().manual_seed(1))
    images = torch.randn(2, EMBEDDING, generator=torch.Generator().manual_seed(2))
    conditioning = backbone.condition(backbone.encode_texts(["a red circle", "a star"]), images, backbone.canvas_of(x))
    time = torch.tensor(500.0)
    own = backbone.predict(x, time, conditioning, plain_control(torch.tensor([1.0, 0.0])))
    without = backbone.predict(x, time, conditioning, plain_control(torch.zeros(2)))
    passed_on = backbone.predict(x, time, conditioning, None)
    uninstall(networks.denoiser)  # the library's own processors, at scale 1
    try:
        stock = backbone.family.call(networks.denoiser, x, time, conditioning, None)
    finally:
        backbone.family.install(networks.denoiser, backbone.sites)
    torch.testing.assert_close(passed_on, stock, atol=1e-6, rtol=0)
    torch.testing.assert_close(own[:1], stock[:1], atol=2e-5, rtol=0)
    torch.testing.assert_close(own[1], without[1], atol=2e-5, rtol=0)
    assert float((own[0] - without[0]).abs().max()) > 1e-2 < float((stock[1] - own[1]).abs().max())


def test_a_row_takes_the_image_attention_of_another(flux: Flux) -> None:
    backbone = Backbone(flux[0], EditConfig())
    x = torch.randn(2, 16, 6, 8, generator=torch.Generator().manual_seed(1))
    image = torch.randn(1, EMBEDDING, generator=torch.Generator().manual_seed(2)).expand(2, -1)
    conditioning = backbone.condition(backbone.encode_texts(["a red circle", "a star"]), image, backbone.canvas_of(x))
    plain = plain_control(torch.ones(2))
    routed = dataclasses.replace(plain, image_from=torch.tensor([0, 0]))
    first, second = (backbone.predict(x, torch.tensor(500.0), conditioning, each) for each in (plain, routed))
    torch.testing.assert_close(first[0], second[0], atol=1e-6, rtol=0)
    assert float((first[1] - second[1]).abs().max()) > 1e-3


def test_vimaedit_is_guided_by_the_picture(flux: Flux) -> None:
    finals = []
    for options in ({}, {"image_guidance": False}, {"image_strength": 0.0}):
        config = method_config("vimaedit", steps=3, **options)
        editor = BatchEditor(Backbone(flux[0], config), config, flux[1])
        assert not any(note.startswith("no_image_guidance") for note in editor.notes)
        edits = [editor.prepare(request(0))]
        batch = editor.encode(edits)
        if not options:
            kinds = (RowKind.SOURCE_COND, RowKind.TARGET_COND)
            source, target = (batch.conditioning["image"][batch.layout.block(kind)] for kind in kinds)
            assert not source.any() and target.any()  # as the released program hands them over
        finals.append(editor.run(batch, edits).latents)
    torch.testing.assert_close(finals[1], finals[2], atol=1e-5, rtol=0)
    assert float((finals[0] - finals[1]).abs().max()) > 1e-2


def test_what_is_missing_is_counted(model: ModelConfig, tmp_path: Path) -> None:
    assert model.ip_adapter is not None
    tensors: dict[str, Any] = load_file(model.ip_adapter)
    del tensors["double_blocks.1.processor.ip_adapter_double_stream_v_proj.bias"]
    save_file(tensors, tmp_path / "adapter.safetensors")
    broken = dataclasses.replace(model, ip_adapter=str(tmp_path / "adapter.safetensors"))
    with pytest.raises(ConfigError, match=r"1 of 12 tensors are missing \(ip_adapter.1.to_v_ip.bias\)"):
        load_networks(resolve_model(broken), broken)
