"""Edit-friendly DDPM inversion (arXiv 2304.06140), alone and with Prompt-to-Prompt.

The published programs first extract noise maps and then sample with them. Side by side with the source that is the same as adding
the difference of the two means to the source's next latent, so no inversion is needed.
"""

from __future__ import annotations

from dataclasses import replace

from vimaedit.methods.base import Method

EDIT_FRIENDLY = Method(
    defaults={
        "image_guidance": False,
        "blend": "none",
        "steps": 100,
        "skip": 0.36,
        "source_guidance": 3.5,
        "target_guidance": 15.0,
    },
    grid="training",
    track="independent",
    couples=True,
    spread="posterior",
    routing="none",
    edits_text=False,
)

EDIT_FRIENDLY_P2P = replace(
    EDIT_FRIENDLY,
    defaults={
        "image_guidance": False,
        "blend": "none",
        "skip": 0.24,
        "windows": {"self": 0.6, "text": 0.4},
        "text_control": "auto",
        "source_guidance": 1.0,
        "target_guidance": 7.5,
    },
    routing="weights",
    routed_sites="coarser",
    edits_text=True,
)
