"""ViMAEdit with the grounding of Dynamic Prompt Learning (arXiv 2309.15664), an ablation of its paper."""

from __future__ import annotations

from dataclasses import replace

from vimaedit.methods.vimaedit import VIMAEDIT

# How the paper wired the two is not known. Here the source's word map is that of the fitted words on the inverted picture; the
# target's, refinement and thresholds are ViMAEdit's.
DPL = replace(VIMAEDIT, defaults={"grounding": "dpl"})
