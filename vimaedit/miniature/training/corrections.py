"""Pictures that their captions overrule: the UNet sees a scene before an edit and draws the scene after it.

Within an edit the target branch meets what no plain training shows: a noised picture of the source, or of something between source
and target, beside a caption that says otherwise. What a UNet makes of that is nowhere settled; one that was trained for hours only
believes what it sees. These pairs settle it in favour of the caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

from vimaedit.miniature.family import CANVAS_SIZE, LATENT_CHANNELS, VAE_FACTOR
from vimaedit.miniature.training.components import Components
from vimaedit.miniature.training.data import (
    Batch,
    clip_views,
    load_tokenizer,
    render_batch,
    to_pixels,
    tokenize,
    training_edit,
    training_scene,
    validation_edit,
)
from vimaedit.scenes.edits import Edit

FIRST_TIMESTEP = 100  # below it too little can still change
CATEGORIES = (  # in turn: what takes long to learn more often
    *("add_object", "change_attribute_color", "change_attribute_content", "change_object", "add_object"),
    *("change_attribute_material", "change_attribute_color", "change_attribute_content", "add_object", "delete_object"),
    *("change_object", "add_object", "change_attribute_color", "change_attribute_content", "change_attribute_pose"),
    *("add_object", "change_attribute_material", "change_background", "change_style"),
)
# Of the latents that the edit changes; 1 of all others. What changes weighs as much in a face, where that is a mouth, as where it is
# a whole object.
EDITED_TOTAL, LEAST_WEIGHT, MOST_WEIGHT = 200.0, 2.0, 20.0


def training_correction(stage: str, index: int) -> Edit:
    """Return correction number `index` of a stage: the source of this edit is seen, its target is wanted."""
    return training_edit(stage, index, CATEGORIES)


def validation_correction(index: int) -> Edit:
    """Return correction number `index` of the validation split."""
    return validation_edit(index, CATEGORIES)


def encode_corrections(components: Components, edits: Sequence[Edit]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the latents of what is seen and of what is wanted, (B, C, h, w), and the weights of their errors, (B, 1, h, w)."""
    if not edits:
        side = CANVAS_SIZE // VAE_FACTOR
        empty = torch.zeros(0, LATENT_CHANNELS, side, side)
        return empty, empty, empty[:, :1]
    pictures = render_batch([each.source for each in edits] + [each.target for each in edits])
    seen, wanted = components.encode(to_pixels(pictures)).chunk(2)
    differs = torch.from_numpy((pictures[: len(edits)] != pictures[len(edits) :]).any(axis=-1))
    touched = F.max_pool2d(differs[:, None].float(), VAE_FACTOR)
    each_weight = (EDITED_TOTAL / touched.sum(dim=(1, 2, 3), keepdim=True)).clamp(LEAST_WEIGHT, MOST_WEIGHT)
    return seen, wanted, torch.where(touched > 0, each_weight, 1.0)


def mix(before_BChw: Tensor, after_BChw: Tensor, timesteps_B: Tensor) -> Tensor:
    """Return what the steps of an edit meet: at the first levels the picture before it, at later ones more often something between."""
    shape, device = (len(before_BChw), 1, 1, 1), before_BChw.device
    between = torch.rand(shape, device=device) > timesteps_B.view(shape) / 1000
    return before_BChw.lerp(after_BChw, torch.rand(shape, device=device) * between)


@dataclass(frozen=True)
class PairDraw:
    """Batches of corrections and plain scenes.

    A batch: latents before and after an edit, (C, 32, 16, 16) both, and the weights of their errors, (C, 1, 16, 16); latents of
    plain scenes, (B - C, 32, 16, 16); token ids (B, T) of what is wanted, edits first; CLIP's views (B, side, side, 3) of it, where
    asked for.
    """

    stage: str
    components: Components
    batch: int
    corrections: float
    views: bool = False
    tokenizer: CLIPTokenizer = field(default_factory=load_tokenizer)

    def __call__(self, first: int) -> Batch:
        """Draw the batch that begins with scene number `first`."""
        num_corrections = round(self.corrections * self.batch)
        # Numbered on their own, so that their categories come in turn.
        start = first // self.batch * num_corrections
        corrections = [training_correction(self.stage, start + n) for n in range(num_corrections)]
        before, after, weights = encode_corrections(self.components, corrections)
        pairs = [training_scene(self.stage, first + num_corrections + n) for n in range(self.batch - num_corrections)]
        plain = self.components.encode(to_pixels(render_batch([scene for scene, _ in pairs])))
        ids = tokenize(self.tokenizer, [each.target_prompt for each in corrections] + [caption for _, caption in pairs])
        latents = [each.numpy().astype(np.float16) for each in (before, after, weights, plain)]
        views = [clip_views([each.target for each in corrections] + [scene for scene, _ in pairs])] if self.views else []
        return *latents, ids.numpy().astype(np.int32), *views
