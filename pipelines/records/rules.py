"""What reading a record goes by: the run's few options that it depends on."""

from __future__ import annotations

from dataclasses import dataclass

from vimaedit.images import CanvasSpec


@dataclass(frozen=True, kw_only=True)
class RecordRules:
    """Limits and the canvas. `seed` is the run's, from which that of a record without one is derived."""

    min_side_px: int
    max_pixels: int
    canvas: CanvasSpec
    clip_side: int
    seed: int
    reads_masks: bool  # grounding=given
    keeps_coded: bool  # frame=original: what is pasted back into is decoded again where rows are written
