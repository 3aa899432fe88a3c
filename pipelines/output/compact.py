"""Rewrite a finished output into large shards, Parquet or WebDataset, in its own order, a piece at a time."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pipelines.options import Shards, check_bases, check_given
from pipelines.output.finish import RUN_FILE
from pipelines.output.parts import FOOTER_KEY, open_result_writer
from pipelines.output.samples import write_samples
from pipelines.output.sets import SUFFIXES, File, Finished, read_finished, shard_names
from pipelines.store.listing import refuse_output_in_input
from pipelines.store.location import (
    Location,
    check_writable,
    damaged,
    exists,
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
    READ_ROWS,
    BrokenParquet,
    read_batches,
    read_footer,
    read_groups,
    write_groups,
)
from vimaedit.checks import check_choice
from vimaedit.errors import ConfigError

T = TypeVar("T")
logger = logging.getLogger(__name__)

MEGABYTE = 1_000_000
BUFFER_BYTES = 1 << 20  # held of a column that is read
STATE_FILE = "state/compact.json"  # what the shards are made of, written before the first of them
CARD = "README.md"
THIS_FOLDER = "PATH_OF_THIS_FOLDER"  # in a card's call to load it; once published it is the repository
PICTURES = ("samples.png",)  # that a card shows
FORM = """
## Form

WebDataset: `<key>.source`, `<key>.edited` and `<key>.mask` (of preferences `<key>.source`, `<key>.chosen` and `<key>.rejected`, of turns `<key>.image_0` to `<key>.image_2`), each `.png`,
`.webp` or `.jpg`, and `<key>.json` with all other columns. A record has the same key in each configuration. Where an edit had no mask, it is white, and `mask` in the
JSON `false`. `load_dataset` gives the members as columns (`source.png`, ..., `json`); the `webdataset` package reads the files too:

```python
import glob
import webdataset

data = webdataset.WebDataset(sorted(glob.glob("DOWNLOADED_FOLDER/data/train-*.tar")), shardshuffle=False).decode("pil")
```
"""


@dataclass(frozen=True, kw_only=True)
class CompactConfig(Shards):
    """`jobs.compact`: which output to rewrite, and where to."""

    input: str = ""  # output of a finished jobs.edit or jobs.synthesize, local or any fsspec URL
    output: str = ""  # new or empty folder, local or any fsspec URL
    format: str = "parquet"  # of the shards: parquet, or webdataset (tar files; edits that are ok)

    def __post_init__(self) -> None:
        check_bases(self, CompactConfig)
        check_given(self, ("input", "output"))
        check_choice("format", self.format, tuple(SUFFIXES))


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
    """One file to write: its path below the output, the files whose rows it holds, and how many those are."""

    path: str
    files: list[File]
    rows: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """What an output is made of. `facts` tell it from any other state of the input, or cut, or form."""

    source: Location
    output: Location
    form: str
    found: Finished
    shards: list[_Shard]
    facts: dict[str, Any]
    warnings: tuple[str, ...]

    def is_there(self, shard: _Shard) -> bool:
        """Whether a shard was written before; what is there at all is whole."""
        if self.form == "webdataset":
            return exists(self.output / shard.path)
        try:
            return bool(read_footer(self.output / shard.path).num_rows == shard.rows)
        except BrokenParquet:
            return False


def compact(config: CompactConfig) -> Compacted:
    """Write the shards `data/train-00000-of-00042.parquet`, then `run.json` as it was, then `_SUCCESS`; or go on with them.

    Of a data set all folders are taken, with its card. WebDataset shards are written by Python's tarfile rather than Ray's writer:
    that names its files anew in every attempt and puts the time into every member, so that nothing could be gone on with.

    Raises: ConfigError for an input that is not finished or whose parts are not those of its manifest or broken, for an
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
    place = mask_urls(source.url)
    if not is_complete(source):
        raise ConfigError(f"input: got {place}, which has no _SUCCESS; allowed: the output of a run that has come to its end")
    if exists(source / STATE_FILE):
        raise ConfigError(f"input: got {place}, which jobs.compact has written; allowed: the output that it was made of")
    refuse_output_in_input(output, config.input)
    check_writable(output, "data", "state")
    found = read_finished(source)
    if found.is_set and config.format == "parquet":
        raise ConfigError(
            f"input: got {place}, a data set whose Parquet shards jobs.synthesize has written (shard_mb is an option of its own); "
            "allowed: format=webdataset, or the output of jobs.edit"
        )
    shards = [
        shard
        for split, files in found.splits.items()
        for shard in _cut(split, files, config.format, config.shard_mb * MEGABYTE)
    ]
    files = [file for each in found.splits.values() for file in each]
    warnings = list(found.warnings)
    facts = {**found.facts, "shard_mb": config.shard_mb}
    if config.format == "webdataset":
        facts["format"] = config.format  # outputs begun by earlier versions say nothing of it
        if lost := sum(file.rows - file.ok for file in files):
            warnings.append(f"left out: {lost} of {sum(file.rows for file in files)} rows, whose edit is not ok")
        if not shards:
            raise ConfigError(f"input: got {place}, where no edit is ok; allowed: an output with one at least")
    work = _Work(
        source=source,
        output=output,
        form=config.format,
        found=found,
        shards=shards,
        facts=facts,
        warnings=tuple(warnings),
    )
    _check_output(work)
    return work


def _cut(split: str, files: Sequence[File], form: str, shard_bytes: float) -> list[_Shard]:
    """Cut a split's files into shards. In tar files those have no part that hold no edit: readers want a sample in each."""
    by_path = {file.path: file for file in files if file.ok or form == "parquet"}
    groups = cut_shards(list(by_path), [file.size for file in by_path.values()], shard_bytes)
    cut = [[by_path[path] for path in group] for group in groups]
    return [
        _Shard(path=path, files=group, rows=sum(file.rows if form == "parquet" else file.ok for file in group))
        for path, group in zip(shard_names(split, len(cut), form), cut, strict=True)
    ]


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
            f"output: got {place}, which holds shards of another run, of another state of this one, or of another shard_mb or "
            "format; allowed: a new or empty folder (nothing is deleted)"
        )


def _write(work: _Work, lock: Lock) -> None:
    put_json(work.output / STATE_FILE, work.facts)
    for folder in {shard.path.rpartition("/")[0] for shard in work.shards}:
        remove_unfinished(work.output / folder)
    for number, shard in enumerate(work.shards, start=1):
        if work.is_there(shard):
            logger.info("%d of %d shards: there already", number, len(work.shards))
            continue
        with new_file(work.output / shard.path) as path:
            rows = _write_shard(work, shard.files, path)
            if rows != shard.rows:
                raise RuntimeError(f"{shard.path}: {rows} rows were written, where {shard.rows} were counted")
            lock.check()
        logger.info("%d of %d shards: %d rows", number, len(work.shards), rows)
    if work.found.is_set:
        _write_card(work)
    put_atomic(work.output / RUN_FILE, read_bytes(work.source / RUN_FILE))
    if not is_complete(work.source) or read_finished(work.source).facts != work.found.facts:
        raise RuntimeError(f"{mask_urls(work.source.url)}: was changed while it was compacted; allowed: one run at a time")
    lock.check()
    write_success(work.output)


def _write_card(work: _Work) -> None:
    """Write a data set's card beside its shards, which have other names now."""
    text = read_card(work.source).replace("-*.parquet\n", f"-*{SUFFIXES[work.form]}\n")
    put_atomic(work.output / CARD, f"{text.rstrip()}\n{FORM}".encode())
    for name in PICTURES:
        if exists(work.source / name):
            put_atomic(work.output / name, read_bytes(work.source / name))


def read_card(source: Location) -> str:
    """Read a data set's card. Raises: ConfigError for one that is no text."""
    try:
        return read_bytes(source / CARD).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"input: {damaged(source / CARD, error, 'a card in UTF-8')}") from error


def _summary(work: _Work, *, was_finished: bool) -> Compacted:
    sizes = dict(list_files(work.output))
    return Compacted(
        shards=len(work.shards),
        rows=sum(shard.rows for shard in work.shards),
        bytes=sum(sizes[shard.path] for shard in work.shards),
        data=mask_urls((work.output / "data").url),
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


def _write_shard(work: _Work, files: Sequence[File], path: str) -> int:
    """Write the rows of some files into a local one; return how many. Small parts share row groups.

    Raises: ConfigError naming a part that is broken.
    """
    if work.form == "webdataset":
        return write_samples(path, _read(work, files, partial(read_batches, rows=READ_ROWS, buffer_bytes=BUFFER_BYTES)))
    schema = read_footer(work.source / files[0].path).schema.to_arrow_schema()
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != FOOTER_KEY}  # that is of a unit
    with open_result_writer(path, schema.with_metadata(metadata)) as writer:
        return write_groups(writer, _read(work, files, read_groups), GROUP_ROWS)


def _read(work: _Work, files: Sequence[File], read: Callable[[Location], Iterator[T]]) -> Iterator[T]:
    """Read one file after another, a piece at a time."""
    for place in (work.source / file.path for file in files):
        try:
            yield from read(place)
        except BROKEN_CONTENT as error:
            if is_transient(error):
                raise
            raise ConfigError(f"input: {damaged(place, error, 'a whole part', work.found.remedy)}") from error
