"""Say how far a run is, what came of its rows, and who is at work, from what its output holds; or how a picture came about."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs._cli.main import run_job
from pipelines.cluster.losses import losses_lines
from pipelines.exits import EXIT_DONE, EXIT_ERROR
from pipelines.output.parts import REMEDY, foreign_text
from pipelines.output.status import RunStatus, StatusConfig, read_picture_mark, read_status
from pipelines.store.masking import printable
from pipelines.store.patience import LOCK_STALE_S
from vimaedit.types import Status


def status_text(status: RunStatus) -> str:
    """Put a run's status into a few lines."""
    share = f" ({status.rows_done / status.rows_total:.1%})" if status.rows_total else ""
    counts = ", ".join(f"{status.counts.get(kind, 0)} {kind}" for kind in Status)
    lines = [
        f"state:  {_state(status)}",
        f"rows:   {status.rows_done} of {status.rows_total}{share}: {counts}",
        *losses_lines(status.losses),
        f"units:  {status.units_done} of {status.units_total}, generation {status.generation}",
    ]
    if not status.planned:
        del lines[1:]
    if status.rows_in_work is not None:
        lines.append(f"edited: {status.rows_in_work} rows in this attempt, written or in work")
    if status.damage is not None:
        lines.append(f"run:    {status.damage}")
    if status.checked is not None:
        lines.append(f"check:  {status.checked} parts read, {len(status.broken)} broken")
    lines += [f"broken: {name}: {reason}; {REMEDY}" for name, reason in status.broken]
    if status.foreign:
        lines.append(f"other:  {foreign_text(status.foreign)}")
    if status.rate:
        lines.append(f"rate:   {status.rate:.2f} rows/s")
    lines.append(f"lock:   {_lock(status)}")
    return "\n".join(map(printable, lines))


def _state(status: RunStatus) -> str:
    if status.finished:
        why = f": {status.exit_reason}" if status.exit_reason else ""
        return "finished" if status.exit_code is None else f"finished (exit code {status.exit_code}{why})"
    if status.is_released:
        ended = f", interrupted by {status.interrupted}" if status.interrupted else ""
        ended += f", stopped early: {status.stop_reason}" if status.stop_reason else ""
        return f"not finished, nobody at work{ended}: the same command goes on"
    if status.age_s is not None and status.age_s > LOCK_STALE_S:
        return f"not finished; its driver has said nothing for more than {LOCK_STALE_S:g} s: the same command goes on"
    return "running" if status.planned else "being planned"


def _lock(status: RunStatus) -> str:
    if status.holder is None or status.age_s is None:
        return "never taken" if status.holder is None else "being written"
    return f"{'released' if status.is_released else 'held'} by {status.holder}; renewed {max(0.0, status.age_s):.0f} s ago"


def _show(config: StatusConfig) -> int:
    if config.image:
        mark = read_picture_mark(config.image)
        print("\n".join(printable(f"{name}: {value}") for name, value in mark.items()) or "no mark of an edited picture")
        return EXIT_DONE
    status = read_status(config)
    print(status_text(status))
    return EXIT_ERROR if status.broken else EXIT_DONE


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(StatusConfig, _show, words, name="status", summary=__doc__ or "", required=())


if __name__ == "__main__":
    sys.exit(main())
