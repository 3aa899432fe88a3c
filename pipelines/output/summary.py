"""What a run came to, or would be, in values and in words."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.cluster.losses import Losses, losses_lines
from vimaedit.types import Status


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run came to. `counts` by status, `edited` of all `rows` in this attempt, in `seconds`; paths are URLs.

    `losses`: why rows got no edit; `exit_reason`: why the exit code is not 0. `was_finished`: an earlier attempt had come to the end, and nothing was done. Stopped early, counts and rows are this attempt's.
    """

    exit_code: int
    counts: dict[str, int]
    rows: int
    edited: int
    seconds: float
    units: int
    data: str
    run_json: str | None
    sheet: str | None
    stop_reason: str | None
    warnings: tuple[str, ...]
    was_finished: bool = False
    losses: Losses = field(default_factory=dict)
    exit_reason: str | None = None

    @property
    def rows_per_second(self) -> float:
        return self.edited / self.seconds if self.seconds else 0.0

    def reasons(self) -> list[str]:
        """Say why an exit code is not 0, in a line each, for a job of which this run is a part."""
        why = self.exit_reason or self.stop_reason
        return [*losses_lines(self.losses), f"exit code {self.exit_code}: {why}"] if why else []

    def text(self) -> str:
        """Say rows per status, rate, and where the results lie."""
        counts = ", ".join(f"{self.counts.get(status, 0)} {status}" for status in Status)
        if self.was_finished:
            lines = [f"finished before, nothing to do: {self.rows} rows: {counts}"]
        else:
            done = f"{self.edited} of " if self.edited != self.rows else ""
            lines = [f"{done}{self.rows} rows in {self.seconds:.1f} s ({self.rows_per_second:.2f} rows/s): {counts}"]
        lines += losses_lines(self.losses)
        places = (("data:  ", self.data), ("sheet: ", self.sheet), ("report:", self.run_json))
        lines += [f"{label} {place}" for label, place in places if place]
        if self.stop_reason:
            lines.append(f"stopped early: {self.stop_reason}")
        if self.exit_reason:
            lines.append(f"exit code {self.exit_code}: {self.exit_reason}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class DryRunReport:
    """What a run would be: sizes from the plan, rate and bytes from a measured first batch (None: nothing to measure)."""

    files: int
    unreadable_files: int
    requests: int
    units: int
    requests_per_unit: int
    batch_size: int
    actors: int
    device: str
    dtype: str
    model_digest: str
    config_digest: str
    rows_per_hour: float | None
    output_gb: float | None
    warnings: tuple[str, ...]

    def text(self) -> str:
        """Say sizes, place, rate and bytes."""
        unreadable = f", {self.unreadable_files} unreadable" if self.unreadable_files else ""
        lines = [
            f"input:  {self.files} files{unreadable}, {self.requests} edits",
            f"plan:   {self.units} units of up to {self.requests_per_unit} edits, batches of {self.batch_size}",
            f"place:  {self.actors} actors, {self.device}, {self.dtype}",
            f"digest: config {self.config_digest}, model {self.model_digest}",
        ]
        if self.rows_per_hour is None or self.output_gb is None:
            lines.append("sample: nothing could be measured")
        else:
            hours = self.requests / self.rows_per_hour
            lines.append(f"sample: {self.rows_per_hour:.0f} rows/h, so {hours:.2f} h and {self.output_gb:.3f} GB of output")
        return "\n".join([*lines, "dry run: nothing was written"])
