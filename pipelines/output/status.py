"""What an output says of itself: how far a run is, what came of its rows, and who is at work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipelines.cluster.losses import Losses, add_losses, losses_from_json
from pipelines.options import check_given
from pipelines.output.compact import STATE_FILE
from pipelines.output.finish import count_statuses, read_run
from pipelines.output.parts import find_damage, find_foreign, part_name, read_parts
from pipelines.output.plan import StoredPlan, load_plan
from pipelines.output.resume import find_work
from pipelines.store.location import Damaged, Location, exists, is_complete, list_files, locate, read_bytes
from pipelines.store.lock import LOCK_FILE, describe_holder, read_lock
from pipelines.store.masking import mask_urls
from vimaedit.errors import ConfigError
from vimaedit.marks import read_mark

CHECK_THREADS = 4  # each holds a few rows of a part at a time


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """`jobs.status`: which output to look at, or which picture."""

    output: str = ""  # of an editing run, local or any fsspec URL
    check: bool = False  # read every part whole, against its checksums; exit code 1 where one is broken
    image: str = ""  # instead: an edited picture, whose mark is told, local or any fsspec URL

    def __post_init__(self) -> None:
        if not self.image:
            check_given(self, ("output",))
        elif self.output:
            raise ConfigError(f"image: got {self.image!r} beside output; allowed: one of them")


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What an output holds. Rows and units are those of the run's limit, where one is known; `counts` are of finished units.

    `rows_in_work`: edited by the holder of the lock in this attempt, as it said last; a part of them may be written already.
    `rate`: rows per second of that attempt, or of the one that finished the run. `holder` and its last word `age_s` seconds
    ago, by both machines' clocks: None where no lock was ever taken. `interrupted`: the signal that ended it. `checked`: how many
    parts were read whole, of which `broken` (name, reason) are; `foreign`: files among the parts that are none; `damage`: of `run.json`.
    """

    finished: bool
    exit_code: int | None
    planned: bool
    rows_done: int
    rows_total: int
    units_done: int
    units_total: int
    counts: dict[str, int]
    losses: Losses
    exit_reason: str | None
    generation: int
    holder: str | None
    is_released: bool
    interrupted: str | None
    stop_reason: str | None
    age_s: float | None
    rows_in_work: int | None
    rate: float | None
    checked: int | None
    broken: tuple[tuple[str, str], ...]
    foreign: tuple[str, ...]
    damage: str | None


def read_picture_mark(image: str) -> dict[str, str]:
    """Read what the mark of a picture says; empty where it carries none.

    Raises: ConfigError where there is no such picture.
    """
    place = locate(image)
    try:
        return read_mark(read_bytes(place))
    except OSError as error:  # also Pillow's, for what is no picture
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error).strip()
        raise ConfigError(f"image: got {mask_urls(place.url)} ({mask_urls(reason)}); allowed: an edited picture") from error


def read_status(config: StatusConfig) -> RunStatus:
    """Look at an output, whatever state it is in; nothing is written.

    Raises: ConfigError where it holds no run.
    """
    output = locate(config.output)
    lock = read_lock(output / LOCK_FILE)
    stored = load_plan(output)
    if stored is None and (lock is None or exists(output / STATE_FILE)):
        raise ConfigError(f"output: got {mask_urls(output.url)}, which holds no run; allowed: the output of jobs.edit")
    holder = None if lock is None else describe_holder(lock)
    lock = {"released": True} if lock is None else lock
    is_released = bool(lock.get("released"))
    finished, damage, checked = is_complete(output), None, None
    foreign: list[str] = []
    broken: list[tuple[str, str]] = []
    try:
        run = read_run(output) or {}
    except Damaged as error:
        run, damage = {}, str(error)
    if stored is not None:
        units = [unit.id for unit in stored.plan.units]
        foreign = find_foreign(output, units)
        if config.check:
            broken, checked = _check(output, units)
        if finished and run:  # a limit takes the first units
            present = {name for name, _ in list_files(output / "data", ".parquet")}
            broken += [(part_name(unit), "it is not there") for unit in units[: run["units"]] if part_name(unit) not in present]
    edited = None if finished or is_released else lock.get("rows_edited")
    return RunStatus(
        finished=finished,
        exit_code=run.get("exit_code") if finished else None,
        planned=stored is not None,
        **_done(output, stored, run if finished else {}, lock),
        exit_reason=run.get("exit_reason") if finished else None,
        generation=1 if stored is None else stored.plan.generation,
        holder=holder,
        is_released=is_released,
        interrupted=lock.get("interrupted"),
        stop_reason=None if finished else lock.get("stop_reason"),
        age_s=time.time() - lock["renewed_at"] if "renewed_at" in lock else None,
        rows_in_work=edited,
        rate=run.get("rows_per_second") if finished else _rate(lock, edited),
        checked=checked,
        broken=tuple(broken),
        foreign=tuple(foreign),
        damage=damage,
    )


def _done(output: Location, stored: StoredPlan | None, run: dict[str, Any], lock: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `RunStatus` that say how far a run is: as `run` says where it is finished, else by its parts."""
    counted: tuple[Any, ...]
    if stored is None:
        counted = 0, 0, 0, 0, count_statuses([]), {}
    elif run:
        counted = run["rows"], run["rows"], run["units"], run["units"], run["counts"], losses_from_json(run.get("losses"))
    else:
        plan = stored.plan
        work = find_work(plan, read_parts(output, (unit.id for unit in plan.units), plan.digest), lock.get("limit"))
        done = work.done_parts()
        # Of a run that is stopped early perhaps nothing is written yet.
        losses = add_losses(part.losses for part in done) or losses_from_json(lock.get("losses"))
        rows = sum(part.rows for part in done), work.num_rows
        counted = *rows, len(done), len(work.units), count_statuses(done), losses
    names = "rows_done", "rows_total", "units_done", "units_total", "counts", "losses"
    return dict(zip(names, counted, strict=True))


def _check(output: Location, units: Sequence[str]) -> tuple[list[tuple[str, str]], int]:
    """Read the parts that are there whole; return which are broken and why, and how many were read."""
    present = {name for name, _ in list_files(output / "data", ".parquet")}
    there = [unit for unit in units if part_name(unit) in present]
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        found = zip(there, pool.map(lambda unit: find_damage(output, unit), there), strict=True)
        return [(part_name(unit), reason) for unit, reason in found if reason is not None], len(there)


def _rate(lock: dict[str, Any], edited: int | None) -> float | None:
    if not edited or not {"renewed_at", "editing_since"} <= lock.keys():
        return None
    return float(edited / max(1e-3, lock["renewed_at"] - lock["editing_since"]))
