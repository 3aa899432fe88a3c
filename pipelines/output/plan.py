"""The plan: requests cut into batches at fixed offsets of each file, batches into units; stored before any work starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.records.scan import InputFile, InputSet
from pipelines.store.decoded import HELD_BYTES
from pipelines.store.listing import refuse_output_in_input
from pipelines.store.location import Location, damaged, is_transient, put_atomic, put_json, read_bytes, read_json
from pipelines.store.masking import mask_urls
from pipelines.store.parquet import BROKEN_CONTENT, put_table, read_table, table_bytes

UNIT_BYTES = 128 * 1024 * 1024  # of output
UNIT_SECONDS = 600.0
UNITS_PER_ACTOR = 4
PLAN_FILE = "plan.json"
PLAN_FIELDS = {  # of it
    "digest": str,
    **dict.fromkeys(("revision", "generation", "batch_size"), int),
    **dict.fromkeys(("settled", "options"), dict),
    "retry_statuses": list,
    "row_seconds": int | float | None,
}
REMEDY = "put a copy of it back, or take another output: the parts can be read without it"
UNIT_COLUMNS = ("file", "files", "start", "first_row", "first_edit", "count", "generation")  # as stored


@dataclass(frozen=True, kw_only=True, slots=True)  # a large input has many
class Unit:
    """Consecutive requests of one file that are edited, written and retried together; or all those of `files` small ones in a row.

    `start` counts the file's requests; the first one is edit `first_edit` of row `first_row` (-1: the file cannot
    be planned). `count` requests belong to the unit, of which a run's limit takes the first `take`. A part of a generation
    below `generation` does not count: some of its rows are to be done again.
    """

    file: int
    files: int = 1
    start: int
    first_row: int
    first_edit: int
    count: int
    take: int
    generation: int = 1

    @property
    def id(self) -> str:
        return f"{self.file:05d}-{self.start:09d}"

    def files_of(self, files: Sequence[InputFile]) -> Sequence[InputFile]:
        """Return its own of all files."""
        return files[self.file : self.file + self.files]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All units of an input, and what was settled before they were cut.

    `digest` names the plan as it was first made, and its parts with it; `revision` counts its makings: it is raised where
    files are appended and where rows are to be done again. `generation` is that of the parts to be written; in a unit of
    this generation that has a part of a lower one, rows of `retry_statuses` are done again and the others kept. `options` are
    those that the config digest covers. `row_seconds`: measured before the first units were cut, None where nothing was.
    """

    units: tuple[Unit, ...]
    batch_size: int
    digest: str
    settled: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    row_seconds: float | None = None
    revision: int = 1
    generation: int = 1
    retry_statuses: tuple[str, ...] = ()

    @property
    def num_requests(self) -> int:
        return sum(unit.count for unit in self.units)


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredPlan:
    """A plan as an output holds it, with the files that it was cut from and the schema of the output."""

    plan: Plan
    files: tuple[InputFile, ...]
    schema: pa.Schema


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
    sizes = [UNIT_BYTES / max(row_bytes, 1.0), HELD_BYTES / max(input_row_bytes, 1.0)]
    sizes.append(num_requests / (UNITS_PER_ACTOR * actors))
    if row_seconds is not None:
        sizes.append(UNIT_SECONDS / max(row_seconds, 1e-9))
    return max(1, int(min(sizes) // batch_size)) * batch_size


def make_plan(inputs: InputSet, *, batch_size: int, requests_per_unit: int, settled: dict[str, Any], **others: Any) -> Plan:
    """Cut the input into units of `requests_per_unit`, a multiple of the batch size; fewer in files whose rows may be so large, once
    they are decoded, that they could not be held together.

    `settled` is stored with them; `others` are further fields of `Plan`, which its digest does not cover.
    """
    units = tuple(_cut(inputs, inputs.files, 0, requests_per_unit, batch_size))
    digest = hashlib.blake2b(table_bytes(_units_table(units)) + table_bytes(_files_table(inputs.files)), digest_size=16)
    digest.update(json.dumps({"batch_size": batch_size, **settled}, sort_keys=True).encode())
    return Plan(units=units, batch_size=batch_size, digest=digest.hexdigest(), settled=settled, **others)


def limit_units(units: Sequence[Unit], limit: int | None) -> tuple[Unit, ...]:
    """Take the units of the first `limit` requests; the last one is cut, its batches keep their shape."""
    if limit is None:
        return tuple(units)
    taken, left = [], limit
    for unit in units:
        if left <= 0:
            break
        taken.append(unit if unit.count <= left else replace(unit, take=left))
        left -= unit.count
    return tuple(taken)


def extend_plan(stored: StoredPlan, inputs: InputSet) -> StoredPlan:
    """Append the units of the files that a plan lacks; those that it has keep their numbers."""
    known = {file.path for file in stored.files}
    new = [file for file in inputs.files if file.path not in known]
    size = int(stored.plan.settled["requests_per_unit"])
    appended = _cut(inputs, new, len(stored.files), size, stored.plan.batch_size)
    plan = replace(stored.plan, units=(*stored.plan.units, *appended), revision=stored.plan.revision + 1)
    return replace(stored, plan=plan, files=(*stored.files, *new))


def retry_plan(plan: Plan, units: Collection[str], statuses: Sequence[str]) -> Plan:
    """Raise the generation of some units, by id: what they have of these statuses is to be done again."""
    generation = plan.generation + 1
    raised = tuple(replace(unit, generation=generation) if unit.id in units else unit for unit in plan.units)
    return replace(
        plan, units=raised, revision=plan.revision + 1, generation=generation, retry_statuses=tuple(sorted(set(statuses)))
    )


def store_plan(output: Location, stored: StoredPlan, inputs: InputSet) -> None:
    """Write a plan; its last object, `plan.json`, commits it. Another revision has objects of other names until then.

    Raises: ConfigError where input and output would lie in each other.
    """
    refuse_output_in_input(output, inputs.inputs)
    plan, folder = stored.plan, output / "plan"
    put_table(folder / _object_name("files", plan.revision), _files_table(stored.files))
    put_table(folder / _object_name("units", plan.revision), _units_table(plan.units))
    put_atomic(folder / "schema.arrow", stored.schema.serialize().to_pybytes())
    summary = {
        "digest": plan.digest,
        "revision": plan.revision,
        "generation": plan.generation,
        "retry_statuses": plan.retry_statuses,
        "input": mask_urls(inputs.root),
        "files": len(stored.files),
        "units": len(plan.units),
        "requests": plan.num_requests,
        "batch_size": plan.batch_size,
        "row_seconds": plan.row_seconds,
        "settled": plan.settled,
        "options": plan.options,
    }
    put_json(folder / PLAN_FILE, summary)


def load_plan(output: Location) -> StoredPlan | None:
    """Read the plan that an output holds; None where none was committed.

    Raises: Damaged naming the object of it that is not what was written.
    """
    folder = output / "plan"
    summary = read_json(folder / PLAN_FILE, PLAN_FIELDS, REMEDY)
    if summary is None:
        return None
    units, files = (
        _read_object(folder / _object_name(name, summary["revision"]), read)
        for name, read in (("units", _read_units), ("files", _read_files))
    )
    schema = _read_object(folder / "schema.arrow", lambda place: pa.ipc.read_schema(pa.py_buffer(read_bytes(place))))
    plan = Plan(
        units=units,
        batch_size=summary["batch_size"],
        digest=summary["digest"],
        settled=summary["settled"],
        options=summary["options"],
        row_seconds=summary["row_seconds"],
        revision=summary["revision"],
        generation=summary["generation"],
        retry_statuses=tuple(summary["retry_statuses"]),
    )
    return StoredPlan(plan=plan, files=files, schema=schema)


def _read_units(place: Location) -> tuple[Unit, ...]:
    table = read_table(place)
    names = [name for name in UNIT_COLUMNS if name != "files" or name in table.column_names]  # earlier versions: a file each
    columns = [table.column(name).to_pylist() for name in (*names, "count")]
    return tuple(Unit(**dict(zip(names, values, strict=False)), take=values[-1]) for values in zip(*columns, strict=True))


def _read_files(place: Location) -> tuple[InputFile, ...]:
    return tuple(InputFile(**row) for row in read_table(place).to_pylist())


def _read_object(place: Location, read: Callable[[Location], Any]) -> Any:
    """Read an object of a stored plan.

    Raises: Damaged where it is not what was written, or gone; the infrastructure's errors, after retries.
    """
    try:
        return read(place)
    except (*BROKEN_CONTENT, KeyError, TypeError) as error:
        if is_transient(error):
            raise
        raise damaged(place, error, "what was written with the plan", REMEDY) from error


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


def _cut(inputs: InputSet, files: Sequence[InputFile], first: int, size: int, batch_size: int) -> Iterator[Unit]:
    """Cut files, of which the first has that number, into units of at most `size` requests, and of no more of a file than could be
    held once they are decoded. Small files in a row share a unit."""
    held: Unit | None = None
    limit = size
    for index, file in enumerate(files, start=first):
        own = _held_requests(inputs, file, size, batch_size)
        units = list(_file_units(inputs, index, file, own))
        if not units:
            continue
        is_whole = len(units) == 1 and file.error is None
        if held is not None and is_whole and held.count + units[0].count <= min(limit, own):
            count = held.count + units[0].count
            held, limit = replace(held, files=index - held.file + 1, count=count, take=count), min(limit, own)
            continue
        if held is not None:
            yield held
        held, limit = units[0] if is_whole else None, own
        if held is None:
            yield from units
    if held is not None:
        yield held


def _held_requests(inputs: InputSet, file: InputFile, size: int, batch_size: int) -> int:
    """Return how many requests of a file may stand in one unit: whole batches, at least one."""
    held = HELD_BYTES / max(1.0, inputs.largest_rows.get(file.path, 1.0))
    return min(size, max(1, int(held) // batch_size) * batch_size)


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
    columns = {name: pa.array([getattr(unit, name) for unit in units], pa.int64()) for name in UNIT_COLUMNS}
    return pa.table({"unit": pa.array([unit.id for unit in units], pa.string()), **columns})


def _files_table(files: Sequence[InputFile]) -> pa.Table:
    return pa.table(
        {
            "path": pa.array([file.path for file in files], pa.string()),
            "size": pa.array([file.size for file in files], pa.int64()),
            "rows": pa.array([file.rows for file in files], pa.int64()),
            "footer_digest": pa.array([file.footer_digest for file in files], pa.string()),
            "target_is_list": pa.array([file.target_is_list for file in files], pa.bool_()),
            "error": pa.array([file.error for file in files], pa.string()),
        }
    )


def _object_name(name: str, revision: int) -> str:
    return f"{name}.parquet" if revision == 1 else f"{name}-{revision}.parquet"
