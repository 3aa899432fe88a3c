"""What goes into an editor and what comes out: plain frozen records of numpy arrays and strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

UInt8Array = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]


class Status(StrEnum):
    """What became of one request."""

    OK = "ok"
    REJECTED = "rejected"  # bad input
    FAILED = "failed"  # an error while editing, after retries
    QUARANTINED = "quarantined"  # its process died twice while it ran alone; set by the pipeline only


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What the user handed over and a run does not use: `count` of `total`, up to three `examples`, and the reason."""

    what: str
    count: int
    total: int
    examples: tuple[str, ...]
    reason: str

    def text(self) -> str:
        """Say it in one line."""
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.what}: {self.count} of {self.total} left out ({', '.join(self.examples)}{more}): {self.reason}"


@dataclass(frozen=True, kw_only=True)
class BlendPhrase:
    """The words that say what changes: a phrase of the source prompt, one of the target prompt, either may be absent."""

    source: str | None
    target: str | None


@dataclass(frozen=True, kw_only=True)
class RequestOverrides:
    """Settings of one request; None keeps the value of the run's `EditConfig`."""

    edit_threshold: float | None = None
    critical_threshold: float | None = None
    self_window: float | None = None
    text_window: float | None = None
    image_window: float | None = None
    target_guidance: float | None = None
    image_strength: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class EditRequest:
    """One edit, self-contained and picklable.

    Shapes: `image` (height, width, 3) uint8 sRGB; `given_mask` bool, True = edit, of any size of the picture's aspect; `clip_image` (clip_side, clip_side,
    3) uint8, the uncropped picture as the image encoder sees it. Where it is given, `image` and `given_mask` are on the model's
    canvas already; None: the editor brings them there and makes it from `image`.
    """

    id: str
    image: UInt8Array
    clip_image: UInt8Array | None = None
    source_prompt: str
    target_prompt: str
    instruction: str | None = None  # what a person would ask for; read by hosted pipelines alone
    blend: tuple[BlendPhrase, ...] = ()  # empty: found by `blend=auto`, or no mask
    reweight: tuple[tuple[str, float], ...] = ()  # (phrase of the target prompt, factor on its text attention)
    word_windows: tuple[tuple[str, float], ...] = ()  # (phrase of the target prompt, its own `windows.text`)
    given_mask: BoolArray | None = None
    seed: int = 0  # 0 .. 2**63-1, never combined with the request's place in a batch
    overrides: RequestOverrides = RequestOverrides()


@dataclass(frozen=True, kw_only=True, eq=False)
class EditResult:
    """What became of one request; pictures and masks share one frame, the model's canvas.

    Shapes: `source`, `image` (height, width, 3) uint8; `edit_mask`, `critical_mask` (height, width) bool, None when the
    last step had none.
    """

    id: str
    status: Status
    source: UInt8Array | None = None
    image: UInt8Array | None = None
    edit_mask: BoolArray | None = None
    critical_mask: BoolArray | None = None
    mask_source: str | None = None  # where the edit mask comes from: attention, given, difference
    blend_used: tuple[BlendPhrase, ...] = ()
    grounded: bool | None = None  # False: words were given but gave no mask; None: not ok
    error_stage: str | None = None
    error_type: str | None = None
    message: str | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0  # the batch's time divided by its requests


class Editor(Protocol):
    """Edits one batch. Stateless between calls and never raises for one request.

    A `None` is a hole: its slot is computed all the same and its result is `None`, so that a request keeps its batch shape and
    its slot whatever became of its neighbours. All requests share one canvas shape.
    """

    def __call__(self, requests: Sequence[EditRequest | None]) -> list[EditResult | None]: ...
