"""One edit as metrics see it; plain arrays, so that reading needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from vimaedit.types import BoolArray, UInt8Array


@dataclass(frozen=True, kw_only=True, eq=False)
class EditSample:
    """One edit; all pictures and masks in one frame, that of the edited picture.

    Shapes: `source`, `edited`, `target` (height, width, 3) uint8; `reference_mask`, `edit_mask` (height, width) bool. None: there
    is none. `framed`: the reference mask includes the picture's one-pixel border by rule, so masks are not compared there.
    """

    source: UInt8Array
    edited: UInt8Array
    source_prompt: str
    target_prompt: str
    reference_mask: BoolArray | None = None
    edit_mask: BoolArray | None = None
    target: UInt8Array | None = None
    framed: bool = False
    instruction: str | None = None
