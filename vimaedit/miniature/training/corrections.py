"""Pictures that their captions overrule: the UNet sees a scene before an edit and draws the scene after it.

Within an edit the target branch meets what no plain training shows: a noised picture of the source, or of something between source
and target, beside a caption that says otherwise. What a UNet makes of that is nowhere settled; one that was trained for hours only
believes what it sees. These pairs settle it in favour of the caption.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vimaedit.miniature.family import CANVAS_SIZE, VAE_FACTOR
from vimaedit.miniature.training.components import Components
from vimaedit.miniature.training.data import render_batch, to_pixels, training_edit, validation_edit
from vimaedit.scenes.edits import Edit, edit_mask

FIRST_TIMESTEP = 100  # below it too little can still change
CATEGORIES = (  # in turn: what takes long to learn more often
    *("change_object", "change_attribute_color", "change_attribute_material", "change_object", "change_attribute_content"),
    *("delete_object", "change_attribute_color", "change_object", "change_attribute_material", "change_attribute_pose"),
    *("change_background", "change_style", "add_object"),
)
EDITED_WEIGHT = 5.0  # of the latents that the edit touches; 1 of all others


def training_correction(stage: str, index: int) -> Edit:
    """Return correction number `index` of a stage: the source of this edit is seen, its target is wanted."""
    return training_edit(stage, index, CATEGORIES)


def validation_correction(index: int) -> Edit:
    """Return correction number `index` of the validation split."""
    return validation_edit(index, CATEGORIES)


def encode_corrections(components: Components, edits: Sequence[Edit]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the latents of what is seen and of what is wanted, (B, C, h, w), and the weights of their errors, (B, 1, h, w)."""
    pictures = render_batch([each.source for each in edits] + [each.target for each in edits])
    seen, wanted = components.encode(to_pixels(pictures)).chunk(2)
    masks = torch.stack([torch.from_numpy(edit_mask(each, CANVAS_SIZE)) for each in edits])
    touched = F.max_pool2d(masks[:, None].float(), VAE_FACTOR)
    return seen, wanted, 1 + (EDITED_WEIGHT - 1) * touched


def mix(before_BChw: Tensor, after_BChw: Tensor) -> Tensor:
    """Return what the steps of an edit meet: half of the time the picture before it, else something between both."""
    shape = (len(before_BChw), 1, 1, 1)
    return before_BChw.lerp(after_BChw, torch.rand(shape) * torch.randint(2, shape))
