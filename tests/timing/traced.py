"""Editors to time a pipeline by: one that notes when it worked, and one that sleeps instead of computing."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vimaedit.types import Editor, EditRequest, EditResult, Status


@dataclass(frozen=True)
class SleepingEditor:
    """Take `seconds` for a batch of any size without using a core; a result is the picture mirrored, with masks of its middle."""

    seconds: float

    def __call__(self, requests: Sequence[EditRequest | None]) -> list[EditResult | None]:
        time.sleep(self.seconds)
        return [None if request is None else _mirrored(request) for request in requests]


def _mirrored(request: EditRequest) -> EditResult:
    height, width = request.image.shape[:2]
    masks = []
    for part in (4, 3):
        mask = np.zeros((height, width), dtype=np.bool_)
        mask[height // part : height - height // part, width // part : width - width // part] = True
        masks.append(mask)
    return EditResult(
        id=request.id,
        status=Status.OK,
        source=request.image,
        image=np.ascontiguousarray(request.image[:, ::-1]),
        edit_mask=masks[0],
        critical_mask=masks[1],
        blend_used=request.blend,
        grounded=True,
    )


@dataclass(frozen=True)
class Call:
    """One call of an editor: which process made it, when it began and ended (seconds since the epoch), and how many edits it did."""

    process: int
    began: float
    ended: float
    edits: int


class TracedEditor:
    """Let another editor work, and note each call in a file of this process in `folder`."""

    def __init__(self, editor: Editor, folder: Path) -> None:
        self.editor = editor
        self.process = os.getpid()
        self.path = folder / f"{self.process}.txt"
        self.path.write_text(f"{time.time()!r}\n")

    def __call__(self, requests: Sequence[EditRequest | None]) -> list[EditResult | None]:
        began = time.time()
        results = self.editor(requests)
        with self.path.open("a") as stream:
            stream.write(f"{began!r} {time.time()!r} {sum(request is not None for request in requests)}\n")
        return results


@dataclass(frozen=True)
class Trace:
    """What traced editors noted: when each process was ready to edit, and all calls in the order of their beginning."""

    ready: dict[int, float]
    calls: tuple[Call, ...]


def read_trace(folder: Path) -> Trace:
    """Read what the editors of all processes have noted so far."""
    ready, calls = {}, []
    for path in folder.glob("*.txt"):
        process = int(path.stem)
        first, *lines = path.read_text().splitlines()
        ready[process] = float(first)
        for line in lines:
            began, ended, edits = line.split()
            calls.append(Call(process, float(began), float(ended), int(edits)))
    return Trace(ready=ready, calls=tuple(sorted(calls, key=lambda call: call.began)))
