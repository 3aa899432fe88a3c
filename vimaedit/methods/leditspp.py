"""LEDITS++ (arXiv 2311.16711): guidance by concepts inside masks of their own; here the concept is the target prompt.

There is no published setting for PIE-Bench; these are the defaults of the public pipeline.
"""

from __future__ import annotations

from vimaedit.methods.base import Method

# Reference: the published inversion exchanges the two texts and the published mask counts 75 tokens for every concept,
# `quirks=[leditspp-texts, leditspp-tokens]`.
LEDITSPP = Method(
    defaults={
        "image_guidance": False,
        "blend": "none",
        "steps": 30,
        "skip": 0.15,
        "grounding": "concepts",
        "thresholds": {"edit": 0.9},
        "source_guidance": 0.0,
        "target_guidance": 5.0,
    },
    grid="leading",
    track="independent",
    couples=True,
    spread="posterior",
    second_order=True,
    routing="none",
    edits_text=False,
    guidance="concepts",
    groundings=("concepts", "given"),
)
