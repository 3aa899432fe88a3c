"""pix2pix-zero, P2P-Zero (arXiv 2302.03027): no attention is taken over; the target's latents are moved until its text attention
is like the source's."""

from __future__ import annotations

from dataclasses import replace

from vimaedit.methods.base import Method

# With Direct Inversion: the source is looked up, and the target moves by what that corrects. The published program has a captioner
# describe the picture and adds the difference of the two prompts' embeddings; here the source prompt is that description, so the
# sum is the target prompt. What the description is, the source and the target's unconditional rows read.
# Reference: the published inversion's levels are not those of its sampling, `quirks=[zero-levels]`.
P2P_ZERO = Method(
    defaults={"image_guidance": False, "blend": "none", "source_guidance": 1.0, "target_guidance": 7.5},
    grid="training",
    track="recorded",
    couples=True,
    spread="none",
    routing="none",
    edits_text=False,
    inversion="source",
    free_text="source",
    regularises=True,
    keeps_attention=True,
)

DDIM_P2P_ZERO = replace(P2P_ZERO, track="sampled", couples=False)
