"""What the reference is given of an edit that the engine has prepared."""

from __future__ import annotations

from typing import Any

import torch

from tests.reference.edit import EditInputs, Settings
from vimaedit.config import EditConfig
from vimaedit.engine.batch import EditBatch
from vimaedit.engine.editor import BatchEditor
from vimaedit.engine.prepare import PreparedEdit
from vimaedit.step.noise import START, SeededNoise
from vimaedit.step.rows import RowKind


def reference_inputs(config: EditConfig, editor: BatchEditor, edit: PreparedEdit, batch: EditBatch) -> EditInputs:
    """Give the reference the engine's encodings and alignment of a batch of one, and nothing else."""
    noise = SeededNoise([edit.request.seed], tuple(batch.x0.shape[1:]))
    text = {kind: batch.conditioning["text"][batch.layout.block(kind)][0] for kind in batch.layout.kinds}
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
        assert "image" in batch.conditioning.tensors
        images = {
            "image_source": image,
            "image_target": batch.conditioning["image"][batch.layout.block(RowKind.TARGET_COND)][0, 0],
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
