"""Plug-and-Play (arXiv 2211.12572): the source's decoder features and self-attention weights, for part of the steps."""

from __future__ import annotations

from dataclasses import replace

from vimaedit.methods.base import Method

# With Direct Inversion: the source's latents are those that the inversion passed through.
PNP = Method(
    defaults={
        "image_guidance": False,
        "blend": "none",
        "windows": {"self": 0.5, "feature": 0.8},
        "source_guidance": 1.0,
        "target_guidance": 7.5,
        "negative_prompt": "ugly, blurry, black, low res, unrealistic",
    },
    grid="training",
    track="recorded",
    spread="none",
    routing="queries",
    routed_sites="decoder",
    edits_text=False,
    copies_features=True,
    inversion="source",
    source_text="empty",
)

# Reference: the published program's list of source latents lacks the first one, `quirks=[pnp-shift]`.
DDIM_PNP = replace(PNP, reconstructs=True)
