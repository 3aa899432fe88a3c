"""MasaCtrl (arXiv 2304.08465): from some step on the decoder's fine self-attention reads the source's keys and values."""

from __future__ import annotations

from dataclasses import replace

from vimaedit.methods.base import Method

# With Direct Inversion. The source's prompt is not used anywhere: the picture is inverted and followed without text.
MASACTRL = Method(
    defaults={"image_guidance": False, "blend": "none", "source_guidance": 1.0, "target_guidance": 7.5, "mutual_start": 4},
    grid="training",
    track="recorded",
    spread="none",
    routing="values",
    routed_sites="fine-decoder",
    edits_text=False,
    inversion="empty",
    source_text="empty",
)

DDIM_MASACTRL = replace(MASACTRL, track="sampled")
