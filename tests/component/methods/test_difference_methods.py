"""FlowEdit and UniEdit-Flow on the random model, against their published loops written out plainly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.component.conftest import request
from tests.component.methods.test_methods import Build, build, equal_prompts, predict, run
from vimaedit.engine.editor import BatchEditor
from vimaedit.errors import ConfigError, RequestError
from vimaedit.recipes import method_config
from vimaedit.step.noise import SeededNoise
from vimaedit.step.rows import SOURCE, TARGET
from vimaedit.types import RequestOverrides

assert build  # a fixture


def text_of(editor: BatchEditor, prompt: str) -> torch.Tensor:
    return editor.backbone.encode_texts([prompt])["text"]


def ddim(x: torch.Tensor, eps: torch.Tensor, a: float, b: float) -> torch.Tensor:
    return b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps


@pytest.mark.parametrize("draws", [1, 3])
def test_flowedit_carries_the_mean_difference_of_both_branches(build: Build, draws: int) -> None:
    editor = build("flowedit", skip=0.25, source_guidance=3.0, target_guidance=5.0, flowedit={"draws": draws})
    batch, states = run(editor, [request(0)])
    noise = SeededNoise([request(0).seed], tuple(batch.x0.shape[1:]))
    alphas, empty = editor.backbone.alphas_cumprod, text_of(editor, "")
    texts = [text_of(editor, prompt) for prompt in (request(0).source_prompt, request(0).target_prompt)]
    edited = batch.x0
    assert len(states) == 3
    for i, timestep in enumerate((501, 251, 1)):
        a, b = float(alphas[timestep]), float(alphas[timestep - 250]) if timestep > 1 else 1.0
        moves = []
        for k in range(draws):
            source = a**0.5 * batch.x0 + (1 - a) ** 0.5 * noise.draw(i * draws + k)
            ends = []
            for x, text, scale in ((source, texts[0], 3.0), (source + edited - batch.x0, texts[1], 5.0)):
                free, told = predict(editor.backbone, torch.cat([x, x]), timestep, torch.cat([empty, text])).chunk(2)
                ends.append(ddim(x, free + scale * (told - free), a, b))
            moves.append(ends[1] - ends[0])
        edited = batch.x0 + torch.stack(moves).mean(dim=0)
        distance = states[i].latents[TARGET] - states[i].latents[SOURCE]
        torch.testing.assert_close(distance, edited - batch.x0, atol=5e-4, rtol=0)
    assert torch.equal(states[-1].latents[SOURCE], batch.x0)


def test_flowedit_with_equal_prompts_gives_the_picture(build: Build) -> None:
    editor = build("flowedit", source_guidance=4.0, target_guidance=4.0)
    batch, states = run(editor, [equal_prompts()])
    torch.testing.assert_close(states[-1].latents[TARGET], batch.x0, atol=2e-5, rtol=0)


def test_flowedit_keeps_what_is_outside_a_mask(build: Build) -> None:
    batch, states = run(build("flowedit", blend="auto"), [request(0)])
    mask = states[-1].masks.edit[0, 0]
    assert bool(states[-1].masks.exists) and 0 < int(mask.sum()) < mask.numel()
    assert torch.equal(states[-1].latents[TARGET][0][:, ~mask], batch.x0[0][:, ~mask])
    assert not torch.equal(states[-1].latents[TARGET][0][:, mask], batch.x0[0][:, mask])


def test_uniedit_is_its_ddim_twin(build: Build) -> None:
    """arXiv 2504.13109 on a model that predicts noise, with the levels of its program: t = 1, 251, 501, 751 of 1000."""
    editor = build("uniedit-flow", skip=0.25)
    backbone, own = editor.backbone, request(1)
    batch, states = run(editor, [own])
    alphas = backbone.alphas_cumprod
    empty, source, target = (text_of(editor, prompt) for prompt in ("", own.source_prompt, own.target_prompt))

    def level(t: int) -> float:
        return float(alphas[t]) if t >= 0 else 1.0

    guess = ddim(batch.x0, predict(backbone, batch.x0, 0, empty), 1.0, level(0))
    accepted = batch.x0
    for t in (1, 251, 501):
        eps = predict(backbone, guess, t, empty)
        accepted = ddim(accepted, eps, level(t - 250), level(t))
        guess = ddim(accepted, eps, level(t), level(t + 250))
    x = accepted
    for i, t in enumerate((501, 251, 1)):
        from_source, to_target = predict(backbone, torch.cat([x, x]), t, torch.cat([source, target])).chunk(2)
        difference = to_target - from_source
        mean = difference.mean(dim=1, keepdim=True)
        m = (mean - mean.min()) / (mean.max() - mean.min() + 1e-7)
        eps = 5 * (1 + m) * difference + m * to_target + (1 - m) * from_source
        x = ddim(x, eps, level(t), float(alphas[max(t - 250, 0)]))
        weights = states[i].masks.weights
        assert weights is not None
        torch.testing.assert_close(weights, m, atol=1e-4, rtol=0)
        torch.testing.assert_close(states[i].latents[TARGET], x, atol=2e-3, rtol=1e-4)
        assert torch.equal(states[i].latents[SOURCE], states[i].latents[TARGET])


def test_uniedit_among_others_is_as_alone(build: Build) -> None:
    editor = build("uniedit-flow", steps=2, skip=0.0)
    _, both = run(editor, [request(0), request(1)])
    _, alone = run(editor, [request(1)])
    torch.testing.assert_close(both[-1].latents[TARGET, 1:], alone[-1].latents[TARGET], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"target_guidance": 2.0},
            "target_guidance: got 2.0 with method=uniedit-flow; allowed: 1, for it steers by uniedit.strength",
        ),
        ({"blend": "auto"}, "blend, grounding: got auto, vimaedit with method=uniedit-flow; allowed: blend=none"),
        ({"grounding": "given"}, "blend, grounding: got none, given with method=uniedit-flow"),
        ({"uniedit": {"strength": -1.0}}, "uniedit.strength: got -1.0; allowed: 0"),
    ],
)
def test_what_uniedit_cannot_heed_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        method_config("uniedit-flow", **options)


@pytest.mark.parametrize("method", ["fireflow", "rf-solver"])
def test_midpoint_steps_are_refused_where_no_velocity_is_predicted(build: Build, method: str) -> None:
    with pytest.raises(
        ConfigError, match=f"method: got {method} .*no meaning: its midpoint steps follow the velocity of a flow"
    ):
        build(method)


def test_a_guidance_of_a_record_that_uniedit_cannot_heed_rejects_it(build: Build) -> None:
    with pytest.raises(RequestError, match="overrides.target_guidance: got 2.0"):
        build("uniedit-flow").prepare(request(0, overrides=RequestOverrides(target_guidance=2.0)))
