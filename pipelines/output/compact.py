"""Rewrite an output into large shards, in the plan's order, a row group at a time."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.options import Shards, check_bases, check_given
from pipelines.output.finish import RUN_FILE, read_run
from pipelines.output.parts import (
    FOOTER_KEY,
    REMEDY,
    find_foreign,
    foreign_text,
    open_result_writer,
    part_name,
    read_parts,
)
from pipelines.store.listing import refuse_output_in_input
from pipelines.store.location import (
    Damaged,
    Location,
    check_writable,
    damaged,
    is_complete,
    is_transient,
    list_files,
    locate,
    new_file,
    put_atomic,
    put_json,
    read_bytes,
    read_json,
    remove_unfinished,
    write_success,
)
from pipelines.store.lock import LOCK_FILE, Lock, hold_lock
from pipelines.store.masking import mask_urls
from pipelines.store.parquet import (
    BROKEN_CONTENT,
    GROUP_ROWS,
    BrokenParquet,
    read_footer,
    read_groups,
    read_table,
    write_groups,
)
from vimaedit.errors import ConfigError

logger = logging.getLogger(__name__)

MEGABYTE = 1_000_000
STATE_FILE = "state/compact.json"  # what the shards are made of, written before the first of them
MANIFEST_COLUMNS = ("unit", "generation", "rows")
MENDS = "jobs.edit with the same options mends it"


@dataclass(frozen=True, kw_only=True)
class CompactConfig(Shards):
    """`jobs.compact`: which output to rewrite, and where to."""

    input: str = ""  # output of a finished editing run, local or any fsspec URL
    output: str = ""  # new or empty folder, local or any fsspec URL

    def __post_init__(self) -> None:
        check_bases(self, CompactConfig)
        check_given(self, ("input", "output"))


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """What was written, in this attempt or before: shards, rows, bytes, and where. `warnings`: what was left out."""

    shards: int
    rows: int
    bytes: int
    data: str
    warnings: tuple[str, ...]
    was_finished: bool

    def text(self) -> str:
        """Say it in a line."""
        before = "finished before, nothing to do: " if self.was_finished else ""
        return f"{before}{self.rows} rows in {self.shards} shards, {self.bytes / 1e6:.1f} MB: {self.data}"


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """One file to write: its name, the units in it, and how many rows they have."""

    name: str
    units: list[str]
    rows: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """What an output is made of. `facts` tell it from any other state of a run, or cut."""

    source: Location
    output: Location
    shards: list[_Shard]
    facts: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def num_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def is_there(self, shard: _Shard) -> bool:
        """Whether a shard was written before; what is there at all is whole."""
        try:
            return bool(read_footer(self.output / "data" / shard.name).num_rows == shard.rows)
        except BrokenParquet:
            return False


def compact(config: CompactConfig) -> Compacted:
    """Write the shards `data/train-00000-of-00042.parquet`, then `run.json` as it was, then `_SUCCESS`; or go on with them.

    Raises: ConfigError for an input that is not a finished run or whose parts are not those of its manifest or broken, for an
    output that holds anything else, and where another process writes there; LockLost where one has taken over.
    """
    work = _look(config)
    if not is_complete(work.output):
        with hold_lock(work.output) as lock:
            work = _look(config)  # another process may have been here meanwhile
            if not is_complete(work.output):
                _write(work, lock)
                return _summary(work, was_finished=False)
    return _summary(work, was_finished=True)


def _look(config: CompactConfig) -> _Work:
    """Look at input and output, and write nothing."""
    source, output = locate(config.input), locate(config.output)
    if not is_complete(source):
        raise ConfigError(
            f"input: got {mask_urls(source.url)}, which has no _SUCCESS; allowed: the output of a run that has come to its end"
        )
    refuse_output_in_input(output, config.input)
    check_writable(output, "data", "state")
    counted, digest = _counted_parts(source)
    units, sizes = list(counted), _sizes(source, counted)
    groups = cut_shards(units, sizes, config.shard_mb * MEGABYTE)
    work = _Work(
        source=source,
        output=output,
        shards=[
            _Shard(
                name=f"train-{number:05d}-of-{len(groups):05d}.parquet",
                units=group,
                rows=sum(counted[unit][1] for unit in group),
            )
            for number, group in enumerate(groups)
        ],
        facts={
            "plan_digest": digest,
            "shard_mb": config.shard_mb,
            "parts": [[unit, *counted[unit], size] for unit, size in zip(units, sizes, strict=True)],
        },
        warnings=tuple(foreign_text(names) for names in [find_foreign(source, units)] if names),
    )
    _check_output(work)
    return work


def _check_output(work: _Work) -> None:
    """Check that an output is empty, or holds the beginning of these shards.

    Raises: ConfigError.
    """
    found = read_json(work.output / STATE_FILE)
    place = mask_urls(work.output.url)
    if found is None:
        others = [name for name, _ in list_files(work.output) if name != LOCK_FILE]
        if others or is_complete(work.output):
            shown = others[0] if others else "_SUCCESS"
            raise ConfigError(f"output: got {place}, which holds {shown}, no shard of this run; allowed: a new or empty folder")
    elif found != work.facts:
        raise ConfigError(
            f"output: got {place}, which holds shards of another run, of another state of this one, or of another shard_mb; "
            "allowed: a new or empty folder (nothing is deleted)"
        )


def _write(work: _Work, lock: Lock) -> None:
    put_json(work.output / STATE_FILE, work.facts)
    remove_unfinished(work.output / "data")
    for number, shard in enumerate(work.shards, start=1):
        if work.is_there(shard):
            logger.info("%d of %d shards: there already", number, len(work.shards))
            continue
        with new_file(work.output / "data" / shard.name) as path:
            rows = _write_shard(work.source, shard.units, path)
            lock.check()
        logger.info("%d of %d shards: %d rows", number, len(work.shards), rows)
    put_atomic(work.output / RUN_FILE, read_bytes(work.source / RUN_FILE))
    if not is_complete(work.source) or _counted_parts(work.source)[0] != {
        unit: (g, n) for unit, g, n, _ in work.facts["parts"]
    }:
        raise RuntimeError(f"{mask_urls(work.source.url)}: was changed while it was compacted; allowed: one run at a time")
    lock.check()
    write_success(work.output)


def _summary(work: _Work, *, was_finished: bool) -> Compacted:
    data = work.output / "data"
    sizes = dict(list_files(data))
    return Compacted(
        shards=len(work.shards),
        rows=work.num_rows,
        bytes=sum(sizes[shard.name] for shard in work.shards),
        data=mask_urls(data.url),
        warnings=work.warnings,
        was_finished=was_finished,
    )


def cut_shards(units: Sequence[str], sizes: Sequence[int], shard_bytes: float) -> list[list[str]]:
    """Cut units into consecutive shards of about equal size, as many as their bytes need at `shard_bytes` each."""
    total = sum(sizes)
    num_shards = max(1, round(total / shard_bytes))
    middles = (end - size / 2 for end, size in zip(itertools.accumulate(sizes), sizes, strict=True))
    numbers = {unit: int(middle * num_shards / total) for unit, middle in zip(units, middles, strict=True)}
    return [list(shard) for _, shard in itertools.groupby(units, key=numbers.__getitem__)]


def _counted_parts(source: Location) -> tuple[dict[str, tuple[int, int]], str]:
    """Read which units a finished output has, each with generation and rows, and its plan's digest; its parts must be those
    that were counted at its end."""
    try:
        run = read_run(source)
        manifest = read_table(source / "manifest.parquet", MANIFEST_COLUMNS)
        counted = {row["unit"]: (row["generation"], row["rows"]) for row in manifest.to_pylist()}
    except Damaged as error:
        raise ConfigError(f"input: {error}") from error
    except (*BROKEN_CONTENT, KeyError) as error:
        if is_transient(error):
            raise
        raise ConfigError(f"input: {damaged(source / 'manifest.parquet', error, 'a manifest', MENDS)}") from error
    digest = (run or {}).get("plan_digest", "")
    found = {unit: (part.generation, part.rows) for unit, part in read_parts(source, counted, digest).items()}
    if wrong := [unit for unit, facts in counted.items() if found.get(unit) != facts]:
        raise ConfigError(
            f"input: got {mask_urls(source.url)}, where {len(wrong)} of {len(counted)} parts are not those of the manifest, "
            f"{part_name(wrong[0])} the first; allowed: a finished run ({MENDS})"
        )
    return counted, digest


def _sizes(source: Location, units: Iterable[str]) -> list[int]:
    sizes = dict(list_files(source / "data", ".parquet"))
    return [sizes[part_name(unit)] for unit in units]


def _write_shard(source: Location, units: Sequence[str], path: str) -> int:
    """Write the rows of some units into a local file; return how many. Small parts share row groups."""
    schema = read_footer(source / "data" / part_name(units[0])).schema.to_arrow_schema()
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != FOOTER_KEY}  # that is of a unit
    with open_result_writer(path, schema.with_metadata(metadata)) as writer:
        groups = itertools.chain.from_iterable(_part_groups(source, unit) for unit in units)
        return write_groups(writer, groups, GROUP_ROWS)


def _part_groups(source: Location, unit: str) -> Iterator[pa.Table]:
    """Read a part one row group after another.

    Raises: ConfigError naming a part that is broken.
    """
    place = source / "data" / part_name(unit)
    try:
        yield from read_groups(place)
    except BROKEN_CONTENT as error:
        if is_transient(error):
            raise
        raise ConfigError(f"input: {damaged(place, error, 'a whole part', REMEDY)}") from error
