"""A batch of edits as tensors, and the state of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vimaedit.attention.injection import TextEdit
from vimaedit.config import Windows
from vimaedit.models.conditioning import Conditioning
from vimaedit.parts.concepts import ConceptBatch
from vimaedit.parts.learned_words import LearnedWords
from vimaedit.step.masks import Masks
from vimaedit.step.rows import RowLayout


@dataclass(frozen=True, kw_only=True, eq=False)
class EditBatch:
    """B edits as tensors: all that the loop needs to know of them.

    Shapes: `x0` (B, C, h, w) float32; `conditioning` for R rows; `target_guidance`, `edit_threshold`, `critical_threshold` (B,)
    float32; `given_mask` (B, h, w) bool with `grounding=given`, else None. `windows`, `image_strength`:
    one per request. `has_words` (B,) bool: words were given, whether or not a prompt has them. `inversion`, `free`:
    B rows of what the inversion (None: there is none) and the target's unconditional rows are conditioned on. `learned` with
    `grounding=dpl`.
    """

    layout: RowLayout
    x0: Tensor
    conditioning: Conditioning
    text_edit: TextEdit
    windows: tuple[Windows, ...]
    image_strength: tuple[float, ...]
    target_guidance: Tensor
    edit_threshold: Tensor
    critical_threshold: Tensor
    given_mask: Tensor | None
    has_words: Tensor
    inversion: Conditioning | None
    free: Conditioning
    concepts: ConceptBatch | None
    learned: LearnedWords | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class StepState:
    """The state after one step, for callbacks and as the loop's result.

    Shapes: `latents` (2, B, C, h, w), `clean` its prediction x0 likewise, source first (3 with an auxiliary branch, last); `map_sum`
    (2 B, N), sources first, None before grounding starts ((3 B, n) with an auxiliary branch, by mask).
    """

    step: int
    timestep: float
    latents: Tensor
    clean: Tensor
    map_sum: Tensor | None
    masks: Masks


Callback = Callable[[StepState], None]
