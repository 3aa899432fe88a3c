"""Any image-editing pipeline of diffusers as an editor: it has no parts of the engine, only the way in which it is called."""

from __future__ import annotations

from vimaedit.methods.base import Method

# What the call of a public pipeline has as its own defaults, by its class: the options for a model that is such a folder.
PUBLISHED = {
    "StableDiffusionInstructPix2PixPipeline": {"steps": 100, "target_guidance": 7.5},
    "StableDiffusionXLInstructPix2PixPipeline": {"steps": 100, "target_guidance": 5.0},
    "FluxKontextPipeline": {"steps": 28, "target_guidance": 3.5},
    "QwenImageEditPipeline": {"steps": 50, "target_guidance": 4.0},
    "QwenImageEditPlusPipeline": {"steps": 50, "target_guidance": 4.0},
    "Flux2Pipeline": {"steps": 50, "target_guidance": 4.0},
}

PIPELINE = Method(
    hosts_pipeline=True,
    groundings=("difference",),
    defaults={"grounding": "difference", "image_guidance": False, "blend": "none"},
)
