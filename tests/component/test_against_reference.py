"""The batched, fused engine against the slow reference that materialises every map, option by option, on the random model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.component.conftest import picture, request
from tests.reference.edit import EditInputs, Models, Settings, load_models, run
from vimaedit.config import Canvas, EditConfig, GroundingSides, Thresholds, Windows
from vimaedit.loop import EditBatch, StepState
from vimaedit.methods.vimaedit import PreparedEdit, ViMAEditor
from vimaedit.miniature.random_bundle import random_bundle
from vimaedit.noise import START, SeededNoise
from vimaedit.rows import RowKind
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


def reference_inputs(config: EditConfig, editor: ViMAEditor, edit: PreparedEdit, batch: EditBatch) -> EditInputs:
    """Give the reference the engine's encodings and alignment of a batch of one, and nothing else."""
    noise = SeededNoise([edit.request.seed], tuple(batch.x0.shape[1:]))
    text = {kind: batch.conditioning.text[batch.layout.block(kind)][0] for kind in batch.layout.kinds}
    own = edit.request.overrides
    settings = Settings(
        num_steps=config.steps,
        solver=config.solver,
        variance=config.variance,
        eta=config.eta,
        edit_threshold=config.thresholds.edit,
        critical_threshold=config.thresholds.critical,
        self_window=config.windows.self if own.self_window is None else own.self_window,
        text_window=config.windows.text,
        image_window=config.windows.image,
        grounding_rounds=config.grounding_rounds if config.grounding == "vimaedit" else 0,
        grounding_decay=config.grounding_decay,
        grounding_start=config.grounding_start,
        self_side=editor.backbone.self_side,
        text_side=editor.backbone.cross_side,
        image_strength=config.image_strength,
        image_order=config.image_order,
        source_guidance=config.source_guidance,
        target_guidance=config.target_guidance if own.target_guidance is None else own.target_guidance,
    )
    # The fold is the alignment times the equalizer: with `replace` it is the whole edit, with `refine` the kept part stands apart.
    fold, keep = torch.from_numpy(edit.words.fold), torch.from_numpy(edit.words.keep)
    refined: dict[str, Any] = {"mapper": fold}
    if config.text_control == "refine":
        assert config.blend_weight == 1.0
        refined = {"mapper": torch.where(keep == 1, -1, fold.argmax(0)), "mapper_alphas": 1 - keep}
    images: dict[str, Any] = {}
    if config.image_guidance:
        image = editor.backbone.embed_images(edit.clip_image[None])[0]
        assert batch.conditioning.image is not None
        images = {
            "image_source": image,
            "image_target": batch.conditioning.image[batch.layout.block(RowKind.TARGET_COND)][0, 0],
        }
    return EditInputs(
        settings=settings,
        x_0=batch.x0[0],
        init_noise=noise.draw(START)[0],
        step_noise=torch.stack([noise.draw(i)[0] for i in range(config.steps)]),
        text_empty=text[RowKind.TARGET_UNCOND],
        text_source=text[RowKind.SOURCE_COND],
        text_target=text[RowKind.TARGET_COND],
        token_masks=torch.from_numpy(edit.words.word_mask) if config.reads_words else None,
        given_mask=None if batch.given_mask is None else batch.given_mask[0],
        **refined,
        **images,
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_engine_equals_the_reference(make_editor: Callable[..., ViMAEditor], reference_models: Models, variant: str) -> None:
    editor = make_editor(**{"steps": 7, **VARIANTS[variant]})
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
