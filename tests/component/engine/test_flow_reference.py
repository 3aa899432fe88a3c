"""ViMAEdit on flow models against a slow replay of it: explicit joint maps, one edit, every formula written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.component.conftest import request
from tests.reference import grounding, joint
from vimaedit.engine.batch import EditBatch, StepState
from vimaedit.engine.editor import BatchEditor
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.models.files import ModelFacts
from vimaedit.recipes import method_config
from vimaedit.step.noise import SeededNoise

STEPS, GUIDANCE, SELF_WINDOW, START, DECAY, ROUNDS = 5, 5.0, 0.6, 0.2, 0.5, 5
SIDES, LATENTS = (8, 8), (16, 16)


def replay(editor: BatchEditor, batch: EditBatch, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return latents (2, C, h, w), edit and critical mask (h, w) after every step. Rows: source, target, target without text."""
    backbone = editor.backbone
    family, x0 = backbone.family, batch.x0[0]
    told = batch.conditioning
    rows = [batch.layout.kinds.index(kind) for kind in sorted(batch.layout.kinds, key=lambda k: (not k.conditional, k.branch))]
    told = told.rows(torch.tensor(rows))
    num_text = told["text"].shape[1]
    words = batch.text_edit.words[:, 0]
    denoiser, edits = copy.deepcopy(backbone.networks.denoiser), joint.JointEdits(routed=set(backbone.sites.self_routing))
    joint.install(denoiser, edits, num_text)
    noise = SeededNoise([seed], tuple(x0.shape))
    timesteps, sigmas = family.grid(backbone.networks.scheduler, STEPS, SIDES[0] * SIDES[1])
    x = torch.stack([(1 - sigmas[0]) * x0 + sigmas[0] * noise.draw(-1)[0]] * 2)
    total, after_steps = torch.zeros(2, *SIDES), []
    edit = critical = torch.zeros(LATENTS, dtype=torch.bool)
    for i, timestep in enumerate(timesteps):
        edits.takes_from = torch.tensor([0, 0, 2][: len(rows)]) if i < int(SELF_WINDOW * STEPS) else None
        seen = torch.stack([x[0], x[1], x[1]][: len(rows)])
        v = family.call(denoiser, seen, torch.tensor(timestep), told, None)
        if i + 1 >= int(START * STEPS):
            text = [joint.word_map(edits.maps[name][:2], words) for name in backbone.sites.text_maps]
            own = [joint.self_map(edits.maps[name][:2], num_text) for name in backbone.sites.self_maps]
            # The words' columns are summed already: one token that stands for all of them.
            maps = [each[..., None] for each in text]
            total = total + grounding.locate(maps, own, torch.ones(2, 1), SIDES, SIDES, ROUNDS, DECAY)
            edit, critical = (grounding.threshold(total, LATENTS, limit)[0].any(dim=0) for limit in (0.5, 0.8))
        velocity = torch.stack([v[0], v[1] if len(rows) == 2 else v[2] + GUIDANCE * (v[1] - v[2])])
        a, s, b, t = 1 - sigmas[i], sigmas[i], 1 - sigmas[i + 1], sigmas[i + 1]
        clean = x - s * velocity
        clean = torch.stack([x0, x0 + clean[1] - clean[0]])
        variance = t**2 * (1 - (a * t / (b * s)) ** 2) * critical
        x = b * clean + (t**2 - variance).clamp(min=0).sqrt() * (x - a * clean) / s + variance.sqrt() * noise.draw(i)[0]
        if i + 1 >= int(START * STEPS):
            x = torch.stack([x[0], torch.where(edit, x[1], x[0])])
        after_steps.append((x, edit, critical))
    return after_steps


@pytest.mark.parametrize("number", [0, 1])
def test_vimaedit_is_its_slow_replay(flow_model: tuple[Networks, ModelFacts], number: int) -> None:
    options: dict[str, Any] = {"steps": STEPS, "target_guidance": GUIDANCE}
    config = method_config("vimaedit", **options)
    editor = BatchEditor(Backbone(flow_model[0], config), config, flow_model[1])
    edits = [editor.prepare(request(number))]
    batch, states = editor.encode(edits), list[StepState]()
    editor.run(batch, edits, states.append)
    with torch.no_grad():
        expected = replay(editor, batch, request(number).seed)
    assert 0 < int(expected[-1][1].sum()) < 256 and bool(expected[-1][2].any())
    for state, (latents, edit, critical) in zip(states, expected, strict=True):
        assert torch.equal(state.masks.edit[0, 0], edit) and torch.equal(state.masks.critical[0, 0], critical)
        torch.testing.assert_close(state.latents[:, 0], latents, atol=2e-4, rtol=0)
