"""Editors made for flow models: FlowEdit, UniEdit-Flow, FireFlow, RF-Solver-Edit."""

from __future__ import annotations

from dataclasses import replace

from vimaedit.methods.base import Method

# FlowEdit (arXiv 2412.08629): no inversion; the edit moves by what the two prompts' velocities differ on the freshly noised picture.
# Published for Stable Diffusion 3: 33 of 50 steps. What it is published with for FLUX, that family states. The
# published loop carries z_edit; that is the picture and the distance of the two branches, which `couples` keeps.
FLOWEDIT = Method(
    defaults={
        "image_guidance": False,
        "blend": "none",
        "steps": 50,
        "skip": 0.34,
        "source_guidance": 3.5,
        "target_guidance": 13.5,
    },
    track="independent",
    couples=True,
    source_free_text="negative",
    spread="none",
    routing="none",
    edits_text=False,
)

# UniEdit-Flow (arXiv 2504.13109): a corrected inversion with the empty prompt, then steps along the difference of the two prompts'
# predictions, most of all where they differ; on models that predict noise its DDIM twin.
# 9 of 15 steps, 28 passes of a row, as published for flow models; no setting is published for models that predict noise.
UNIEDIT_FLOW = Method(
    defaults={
        "image_guidance": False,
        "blend": "none",
        "steps": 15,
        "skip": 0.4,
        "source_guidance": 1.0,
        "target_guidance": 1.0,
    },
    grid="training",
    track="sampled",
    spread="none",
    routing="none",
    edits_text=False,
    inversion="empty",
    inverts="corrected",
    guidance="difference",
)

# FireFlow (arXiv 2412.07517) and RF-Solver-Edit (arXiv 2411.04746): midpoint rules, up with the source prompt and down with the target's,
# the source's attention values put in near the noise.
FIREFLOW = Method(
    defaults={
        "image_guidance": False,
        "blend": "none",
        "steps": 8,
        "source_guidance": 1.0,
        "target_guidance": 2.0,
        "midpoint": {"steps": 1},
    },
    track="sampled",
    spread="none",
    routing="none",
    edits_text=False,
    inversion="source",
    inverts="midpoint",
    midpoint="reused",
)

RF_SOLVER = replace(
    FIREFLOW,
    defaults={**FIREFLOW.defaults, "steps": 15, "midpoint": {"steps": 4}},
    midpoint="fresh",
)
