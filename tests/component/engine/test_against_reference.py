"""The batched, fused engine against the slow reference that materialises every map, option by option, on the random model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.component.conftest import picture, request
from tests.reference.edit import Models, load_models, run
from tests.reference.inputs import reference_inputs
from vimaedit.config import Canvas, GroundingSides, Thresholds, Windows
from vimaedit.engine.batch import StepState
from vimaedit.engine.editor import BatchEditor
from vimaedit.miniature.random_bundle import random_bundle
from vimaedit.types import RequestOverrides

LATENTS, MAPS = 5e-4, 1e-5
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "dpm": {"solver": "dpmsolver++", "target_guidance": 2.0},
    "zero variance": {"variance": "zero"},
    "uniform variance": {"variance": "uniform"},
    "dpm uniform": {"solver": "dpmsolver++", "variance": "uniform", "target_guidance": 2.0},
    "half eta": {"eta": 0.5},
    "cross-attention": {"grounding": "cross-attention"},
    "given mask": {"grounding": "given"},
    "given mask, zero variance": {"grounding": "given", "variance": "zero"},
    "given mask, dpm uniform": {"grounding": "given", "solver": "dpmsolver++", "variance": "uniform", "target_guidance": 2.0},
    "self-attention at full side": {"grounding_sides": GroundingSides(self=1.0, cross=0.5)},
    "cross-attention at full side": {"grounding_sides": GroundingSides(self=0.5, cross=1.0)},
    "embedding alone": {"text_guidance": False},
    "one step": {"steps": 1},
    "two steps": {"steps": 2},
    "four steps, dpm": {"steps": 4, "solver": "dpmsolver++", "target_guidance": 2.0},
    "wide": {"canvas": Canvas(fit="keep")},
    "no mask": {"blend": "none"},
    "conventional": {"image_order": "conventional"},
    "guided source": {"source_guidance": 2.0, "image_order": "conventional"},
    "replace and reweight": {"text_control": "replace", "blend_weight": 2.5, "windows": Windows(self=0.3, text=0.9, image=0.6)},
    "no image": {"image_guidance": False},
    "other grounding": {
        "grounding_rounds": 3,
        "grounding_decay": 0.8,
        "grounding_start": 0.0,
        "thresholds": Thresholds(edit=0.4),
    },
}


@pytest.fixture(scope="session")
def reference_models() -> Models:
    return load_models(random_bundle())


@pytest.mark.parametrize("variant", VARIANTS)
def test_engine_equals_the_reference(make_editor: Callable[..., BatchEditor], reference_models: Models, variant: str) -> None:
    editor = make_editor(**{"steps": 5, **VARIANTS[variant]})
    config = editor.config
    # A second edit with other settings shares the batch: what is compared is a slot among others.
    size = (160, 96) if variant == "wide" else (128, 128)
    requests = [
        request(0, image=picture(0, *size)),
        request(1, image=picture(1, *size), overrides=RequestOverrides(self_window=0.2, target_guidance=3.0)),
    ]
    edits = [editor.prepare(r) for r in requests]
    batch = editor.encode(edits)
    states: list[StepState] = []
    editor.run(batch, edits, states.append)
    for slot, edit in enumerate(edits):
        alone = editor.encode([edit])
        recorded = run(reference_models, reference_inputs(config, editor, edit, alone))
        for i, state in enumerate(states):
            exists = bool(state.masks.exists[slot])
            assert exists == bool(recorded.mask_exists[i]), f"step {i}"
            if exists:
                assert torch.equal(state.masks.edit[slot, 0], recorded.edit_mask[i]), f"step {i}: edit mask"
                assert torch.equal(state.masks.critical[slot, 0], recorded.critical_mask[i]), f"step {i}: critical mask"
            if state.map_sum is not None and recorded.map_sum is not None:
                own = state.map_sum.view(2, len(edits), -1)[:, slot]
                expected = recorded.map_sum[i].view(2, -1).float()
                assert float((own - expected).abs().max() / expected.abs().max()) <= MAPS, f"step {i}: map"
            torch.testing.assert_close(
                state.latents[:, slot],
                recorded.latents[i].float(),
                atol=LATENTS,
                rtol=0,
                msg=lambda text, i=i: f"step {i}: {text}",
            )
