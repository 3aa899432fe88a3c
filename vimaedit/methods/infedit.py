"""InfEdit (arXiv 2312.04965): virtual inversion on a consistency grid, with a third branch between source and target."""

from __future__ import annotations

from vimaedit.methods.base import Method

# Reference: the published program pairs the two prompts' embeddings crosswise and gives the source the auxiliary branch's
# direction, `quirks=[infedit-crosswise, infedit-direction]`. It reads one blend word, of the target.
INFEDIT = Method(
    defaults={
        "image_guidance": False,
        "steps": 12,
        "start": "noise",
        "grounding": "auxiliary",
        "thresholds": {"edit": 0.55},
        "windows": {"self": 0.7, "text": 0.7},
        "source_guidance": 1.0,
        "target_guidance": 2.3,
    },
    grid="consistency",
    spread="consistency",
    routing="auxiliary",
    routed_sites="all",
    has_auxiliary=True,
    links_words=True,
    returns_clean=True,
    groundings=("auxiliary",),
)
