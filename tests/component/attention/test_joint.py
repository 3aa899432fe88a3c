"""Joint attention under control against the same with explicit weights."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference import joint
from vimaedit.attention.control import AttentionControl, ValueBank, plain_control
from vimaedit.attention.recorder import MapRecorder
from vimaedit.config import EditConfig
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.models.conditioning import Conditioning
from vimaedit.models.files import ModelFacts

Flow = tuple[Networks, ModelFacts]
ROWS, TIME = 3, torch.tensor(600.0)
TAKES_FROM = torch.tensor([0, 0, 2])


def conditioned(backbone: Backbone) -> tuple[Tensor, Conditioning]:
    x = torch.randn(ROWS, 16, 6, 10, generator=torch.Generator().manual_seed(5))
    texts = backbone.encode_texts(["a red circle", "a red star on a lawn", ""])
    return x, backbone.condition(texts, None, backbone.canvas_of(x))


def controlled(backbone: Backbone, **parts: Any) -> Tensor:
    x, conditioning = conditioned(backbone)
    control: AttentionControl = dataclasses.replace(plain_control(torch.zeros(ROWS)), **parts)
    return backbone.predict(x, TIME, conditioning, control)


def materialised(backbone: Backbone, edits: joint.JointEdits) -> Tensor:
    x, conditioning = conditioned(backbone)
    denoiser = copy.deepcopy(backbone.networks.denoiser)
    joint.install(denoiser, edits, conditioning["text"].shape[1])
    with torch.no_grad():
        return backbone.family.call(denoiser, x, TIME, conditioning, None)


def test_a_plain_control_changes_nothing(flow_model: Flow) -> None:
    backbone = Backbone(flow_model[0], EditConfig())
    x, conditioning = conditioned(backbone)
    stock = backbone.predict(x, TIME, conditioning, None)
    torch.testing.assert_close(controlled(backbone), stock, atol=1e-5, rtol=0)
    torch.testing.assert_close(materialised(backbone, joint.JointEdits()), stock, atol=1e-5, rtol=0)


def test_a_row_takes_the_pictures_queries_and_keys_of_another(flow_model: Flow) -> None:
    backbone = Backbone(flow_model[0], EditConfig())
    routed = {name for name, p in backbone.networks.denoiser.attn_processors.items() if p.routes_self}
    assert routed
    own = controlled(backbone, self_from=TAKES_FROM)
    edits = joint.JointEdits(takes_from=TAKES_FROM, routed=routed)
    torch.testing.assert_close(own, materialised(backbone, edits), atol=2e-5, rtol=0)
    plain = controlled(backbone)
    torch.testing.assert_close(own[[0, 2]], plain[[0, 2]], atol=1e-5, rtol=0)
    assert float((own[1] - plain[1]).abs().max()) > 1e-3


def test_maps_are_those_of_explicit_weights_after_the_routing(flow_model: Flow) -> None:
    backbone = Backbone(flow_model[0], EditConfig())
    _, conditioning = conditioned(backbone)
    num_text, num_image = conditioning["text"].shape[1], 15
    words = torch.zeros(2, num_text)
    words[0, [1, 2]] = 1
    words[1, 3] = 1
    recorder = MapRecorder(
        torch.tensor([0, 1]), None, words, None, torch.zeros(2, num_image, num_image), torch.zeros(2, num_image)
    )
    controlled(backbone, self_from=TAKES_FROM, recorder=recorder)
    routed = {name for name, p in backbone.networks.denoiser.attn_processors.items() if p.routes_self}
    edits = joint.JointEdits(takes_from=TAKES_FROM, routed=routed)
    materialised(backbone, edits)
    read = sorted(backbone.sites.text_maps)
    assert read and read == sorted(backbone.sites.self_maps)
    expected = torch.stack([joint.word_map(edits.maps[name][:2], words) for name in read]).mean(dim=0)
    torch.testing.assert_close(recorder.word_sum / backbone.num_word_maps, expected, atol=2e-6, rtol=0)
    assert recorder.self_sum is not None
    own = recorder.self_sum / backbone.num_word_maps
    expected = torch.stack([joint.self_map(edits.maps[name][:2], num_text) for name in read]).mean(dim=0)
    torch.testing.assert_close(own, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(own.sum(dim=-1), torch.ones(2, num_image), atol=1e-5, rtol=0)


def test_all_tokens_apart_sum_to_the_words(flow_model: Flow) -> None:
    backbone = Backbone(flow_model[0], EditConfig())
    _, conditioning = conditioned(backbone)
    num_text = conditioning["text"].shape[1]
    words = torch.rand(1, num_text, generator=torch.Generator().manual_seed(1))
    by_token = MapRecorder(torch.tensor([1]), None, words, None, None, torch.zeros(1, 15), torch.zeros(1, 15, num_text))
    by_word = MapRecorder(torch.tensor([1]), None, words, None, None, torch.zeros(1, 15))
    for recorder in (by_token, by_word):
        controlled(backbone, recorder=recorder)
    assert by_token.token_sum is not None
    torch.testing.assert_close(by_token.token_sum[0] @ words[0], by_word.word_sum[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("flow_model", ["random-flux"], indirect=True)
def test_values_of_one_pass_are_put_into_another(flow_model: Flow) -> None:
    backbone = Backbone(flow_model[0], EditConfig())
    layers = frozenset({"single_transformer_blocks.1.attn.processor"})
    kept: dict[str, Tensor] = {}
    plain = controlled(backbone, values=ValueBank(layers, kept, puts=False))
    torch.testing.assert_close(plain, controlled(backbone), atol=1e-6, rtol=0)
    assert set(kept) == layers
    shifted = {name: value.roll(1, dims=0) for name, value in kept.items()}
    own = controlled(backbone, values=ValueBank(layers, shifted, puts=True))
    edits = joint.JointEdits(values={name: value.transpose(1, 2) for name, value in shifted.items()})
    torch.testing.assert_close(own, materialised(backbone, edits), atol=2e-5, rtol=0)
    assert float((own - plain).abs().max()) > 1e-3
