"""The plan: requests cut into batches at fixed offsets of each file, batches into units; stored before any work starts."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.inputs import InputFile, InputSet
from pipelines.listing import refuse_output_in_input
from pipelines.storage import Location, exists, list_files, put_atomic
from vimaedit.errors import ConfigError

UNIT_BYTES = 128 * 1024 * 1024  # of output
UNIT_INPUT_BYTES = 512 * 1024 * 1024
UNIT_SECONDS = 600.0
UNITS_PER_ACTOR = 4


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Consecutive requests of one file that are edited, written and retried together.

    `start` counts the file's requests; the first one is edit `first_edit` of row `first_row` (-1: the file cannot
    be planned). `count` requests belong to the unit, of which a run's limit takes the first `take`.
    """

    file: int
    start: int
    first_row: int
    first_edit: int
    count: int
    take: int

    @property
    def id(self) -> str:
        return f"{self.file:05d}-{self.start:09d}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All units of an input, and what was settled before they were cut."""

    units: tuple[Unit, ...]
    batch_size: int
    digest: str
    settled: dict[str, Any]

    @property
    def num_requests(self) -> int:
        return sum(unit.count for unit in self.units)


def count_requests(inputs: InputSet) -> int:
    """Count the requests of the whole input. An unreadable file counts as one."""
    return sum(_file_requests(inputs, file) for file in inputs.files)


def unit_size(
    *,
    num_requests: int,
    batch_size: int,
    actors: int,
    row_bytes: float,
    row_seconds: float | None,
    input_row_bytes: float = 0.0,
) -> int:
    """Settle how many requests make a unit: whole batches, at least one.

    The smallest of 128 MB of output, 512 MB of input, ten minutes of work (where the rate is known) and a quarter of an
    actor's share.
    """
    sizes = [UNIT_BYTES / max(row_bytes, 1.0), UNIT_INPUT_BYTES / max(input_row_bytes, 1.0)]
    sizes.append(num_requests / (UNITS_PER_ACTOR * actors))
    if row_seconds is not None:
        sizes.append(UNIT_SECONDS / max(row_seconds, 1e-9))
    return max(1, int(min(sizes) // batch_size)) * batch_size


def make_plan(inputs: InputSet, *, batch_size: int, requests_per_unit: int, settled: dict[str, Any]) -> Plan:
    """Cut the input into units of `requests_per_unit`, a multiple of the batch size. `settled` is stored with them."""
    units = tuple(
        itertools.chain.from_iterable(
            _file_units(inputs, index, file, requests_per_unit) for index, file in enumerate(inputs.files)
        )
    )
    digest = hashlib.blake2b(_parquet(_units_table(units)) + _parquet(_files_table(inputs.files)), digest_size=16)
    digest.update(json.dumps({"batch_size": batch_size, **settled}, sort_keys=True).encode())
    return Plan(units=units, batch_size=batch_size, digest=digest.hexdigest(), settled=settled)


def limit_units(units: Sequence[Unit], limit: int | None) -> tuple[Unit, ...]:
    """Take the units of the first `limit` requests; the last one is cut, its batches keep their shape."""
    if limit is None:
        return tuple(units)
    taken, left = [], limit
    for unit in units:
        if left <= 0:
            break
        taken.append(Unit(**{**asdict(unit), "take": min(unit.count, left)}))
        left -= unit.count
    return tuple(taken)


def refuse_used_output(output: Location, resume: str) -> None:
    """Check that a run may start in `output`: there is nothing of another run in it.

    Raises: ConfigError.
    """
    if resume in ("always", "retry-failed", "extend"):
        raise ConfigError(f"resume: got {resume}, which cannot be done yet; allowed: if-possible, never, with an empty output")
    planned = exists(output / "plan" / "plan.json")
    if planned or list_files(output / "data", ".parquet"):
        found = "a run's plan" if planned else "data"
        raise ConfigError(
            f"output: got {output.url}, which holds {found} already; allowed: a new or empty folder (nothing is deleted)"
        )


def store_plan(output: Location, plan: Plan, inputs: InputSet) -> None:
    """Write the plan; its last object, `plan.json`, commits it.

    Raises: ConfigError where input and output would lie in each other.
    """
    refuse_output_in_input(output, inputs.url)
    put_atomic(output / "plan" / "files.parquet", _parquet(_files_table(inputs.files)))
    put_atomic(output / "plan" / "units.parquet", _parquet(_units_table(plan.units)))
    summary = {
        "digest": plan.digest,
        "input": inputs.root,
        "files": len(inputs.files),
        "units": len(plan.units),
        "requests": plan.num_requests,
        "batch_size": plan.batch_size,
        **plan.settled,
    }
    put_atomic(output / "plan" / "plan.json", json.dumps(summary, indent=2).encode())


def batches(count: int, batch_size: int) -> Iterator[tuple[range, int]]:
    """Cut `count` requests into batches: yields the positions and how many slots the batch has.

    The last batch is padded to the next power of two, at most to the batch size.
    """
    for start in range(0, count, batch_size):
        members = range(start, min(start + batch_size, count))
        slots = batch_size if len(members) == batch_size else min(batch_size, 1 << (len(members) - 1).bit_length())
        yield members, slots


def _file_requests(inputs: InputSet, file: InputFile) -> int:
    if file.error is not None:
        return 1
    return int(inputs.counts[file.path].sum()) if file.target_is_list else file.rows


def _file_units(inputs: InputSet, index: int, file: InputFile, size: int) -> Iterator[Unit]:
    if file.error is not None:
        yield Unit(file=index, start=0, first_row=-1, first_edit=0, count=1, take=1)
        return
    ends = np.cumsum(inputs.counts[file.path], dtype=np.int64) if file.target_is_list else None
    total = file.rows if ends is None else int(ends[-1]) if ends.size else 0
    for start in range(0, total, size):
        row, edit = start, 0
        if ends is not None:
            row = int(np.searchsorted(ends, start, side="right"))
            edit = start - (int(ends[row - 1]) if row else 0)
        count = min(size, total - start)
        yield Unit(file=index, start=start, first_row=row, first_edit=edit, count=count, take=count)


def _units_table(units: Sequence[Unit]) -> pa.Table:
    names = ("file", "start", "first_row", "first_edit", "count")
    columns = {name: pa.array([getattr(unit, name) for unit in units], pa.int64()) for name in names}
    return pa.table({"unit": pa.array([unit.id for unit in units], pa.string()), **columns})


def _files_table(files: Sequence[InputFile]) -> pa.Table:
    return pa.table(
        {
            "path": pa.array([file.path for file in files], pa.string()),
            "size": pa.array([file.size for file in files], pa.int64()),
            "rows": pa.array([file.rows for file in files], pa.int64()),
            "footer_digest": pa.array([file.footer_digest for file in files], pa.string()),
            "error": pa.array([file.error for file in files], pa.string()),
        }
    )


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
