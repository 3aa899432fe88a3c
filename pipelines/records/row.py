"""One request on its way through the stages to one output row."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.cluster.losses import Outcome
from vimaedit.errors import RequestError
from vimaedit.images import FittedImage
from vimaedit.types import EditRequest, EditResult, Status


@dataclass(kw_only=True, eq=False)
class Row:
    """Who a request is, its picture, what it asks of the editor, and what became of it.

    Prompts and seed are the record's, also where nothing can be edited. `picture`: None where there is none to show. `request`:
    None where there is nothing to edit, or no more; its arrays are the picture's own. `result`: None while nothing went wrong.
    """

    id: str
    edit_index: int
    input_file: str
    input_row: int
    source_prompt: str | None = None
    target_prompt: str | None = None
    seed: int
    image_path: str | None = None
    coded: bytes | None = None  # the picture as it came, only where it is pasted back into
    picture: FittedImage | None = None
    request: EditRequest | None = None
    result: EditResult | None = None
    attempts: int = 0
    warnings: list[str] = field(default_factory=list)  # of all stages
    references: Mapping[str, Any] | None = None  # the record's reference columns, only where metrics ride along
    measured: Mapping[str, float | None] = field(default_factory=dict)  # by the metrics that ride along
    is_kept: bool = False  # the row that stands in the output stays as it is; the status is that row's

    @property
    def status(self) -> Status | None:
        """What became of the request; None: nothing went wrong so far."""
        return None if self.result is None else self.result.status

    @property
    def record(self) -> tuple[str, int]:
        """The record that asks for it."""
        return self.input_file, self.input_row

    @property
    def outcome(self) -> Outcome:
        """What became of the request, and why."""
        assert self.result is not None
        return str(self.result.status), self.result.error_type, self.result.message

    @property
    def log_name(self) -> dict[str, Any]:
        """What a line of the log calls it."""
        return {"id": self.id, "row": self.input_row, "edit": self.edit_index}

    def take(self, result: EditResult) -> None:
        """Note what an editor made of the request. Its source is the row's own picture, which need not travel twice."""
        self.result = dataclasses.replace(result, source=None)
        self.warnings = [*self.warnings, *result.warnings]

    def stop(self, status: Status, stage: str, kind: str, message: str) -> None:
        """Settle that this request gets no edit, and why."""
        so_far = self.result or EditResult(id=self.id, status=status)
        self.result = dataclasses.replace(so_far, status=status, error_stage=stage, error_type=kind, message=message)

    def reject(self, stage: str, error: RequestError) -> None:
        """Settle that it cannot be edited as asked; the text names record, field, what was got and what is allowed."""
        self.stop(Status.REJECTED, stage, error.code, f"record {self.id!r}: {error}")
