"""Any image-editing pipeline of diffusers as an editor: it has no parts of the engine, only the way in which it is called."""

from __future__ import annotations

from vimaedit.methods.base import Method

# What the call of a public pipeline has as its own defaults, by its class: the options for a model that is such.
PUBLISHED = {
    "StableDiffusionInstructPix2PixPipeline": {"steps": 100, "target_guidance": 7.5},
    "StableDiffusionXLInstructPix2PixPipeline": {"steps": 100, "target_guidance": 5.0},
    "FluxKontextPipeline": {"steps": 28, "target_guidance": 3.5},
    "QwenImageEditPipeline": {"steps": 50, "target_guidance": 4.0},
    "QwenImageEditPlusPipeline": {"steps": 50, "target_guidance": 4.0},
    "Flux2Pipeline": {"steps": 50, "target_guidance": 4.0},
}
# The same by hub ids, whose class no index says before they are asked for.
PUBLISHED |= {
    "timbrooks/instruct-pix2pix": PUBLISHED["StableDiffusionInstructPix2PixPipeline"],
    "diffusers/sdxl-instructpix2pix-768": PUBLISHED["StableDiffusionXLInstructPix2PixPipeline"],
    "black-forest-labs/FLUX.1-Kontext-dev": PUBLISHED["FluxKontextPipeline"],
    "Qwen/Qwen-Image-Edit": PUBLISHED["QwenImageEditPipeline"],
    "Qwen/Qwen-Image-Edit-2509": PUBLISHED["QwenImageEditPlusPipeline"],
    "black-forest-labs/FLUX.2-dev": PUBLISHED["Flux2Pipeline"],
}

PIPELINE = Method(
    hosts_pipeline=True,
    groundings=("difference", "given", "segmenter"),
    defaults={"grounding": "difference", "image_guidance": False, "blend": "none"},
)
