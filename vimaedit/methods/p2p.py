"""Prompt-to-Prompt (arXiv 2208.01626) under the inversions that PIE-Bench compares it with.

The plain name is Direct Inversion (arXiv 2310.01506), whose source latents are looked up; its other published name is PnPInversion.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vimaedit.methods.base import Method

# Of the benchmark's program: refinement of any prompts, the target's blend word twice as strong, the mask of `local-blend`.
PUBLISHED: dict[str, Any] = {
    "image_guidance": False,
    "grounding": "local-blend",
    "thresholds": {"edit": 0.3},
    "windows": {"self": 0.6, "text": 0.4, "image": 0.0},
    "blend_weight": 2.0,
    "source_guidance": 1.0,
    "target_guidance": 7.5,
}

P2P = Method(
    defaults=PUBLISHED,
    grid="training",
    track="recorded",
    spread="none",
    inversion="source",
)

# Both branches are sampled with guidance, so the source drifts from its picture.
DDIM_P2P = replace(P2P, track="sampled", defaults={**PUBLISHED, "source_guidance": 7.5})

# Negative-prompt inversion (arXiv 2305.16807): the source's prompt stands for the empty one, which makes the source's guidance inert.
NPI_P2P = replace(P2P, track="sampled", free_text="source")

# ... with the guidance's small entries dropped (arXiv 2306.05414).
PROXIMAL_P2P = replace(NPI_P2P, guidance="proximal")

# Null-text inversion (arXiv 2211.09794).
NULL_TEXT_P2P = replace(DDIM_P2P, optimises_text=True)

# Virtual inversion (arXiv 2312.04965) on the usual grid, all noise drawn anew at every step; its published settings are not known.
VIRTUAL_P2P = Method(defaults=PUBLISHED, spread="consistency")
