"""Published benchmarks -> records to edit, with what they know of the answer for scoring."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.ingest.layouts import NAMES, open_source
from pipelines.ingest.sources import Entry, Source
from pipelines.options import Pictures, Rejects, check_bases, check_given
from pipelines.records.schema import BENCHMARK_FIELDS
from pipelines.records.types import with_features
from pipelines.store.location import (
    Damaged,
    Location,
    check_writable,
    damaged,
    exists,
    is_transient,
    list_files,
    locate,
    new_file,
    put_json,
    read_json,
)
from pipelines.store.masking import mask_urls, printable
from pipelines.store.parquet import GROUP_BYTES, BrokenParquet, open_writer, read_footer, write_group
from vimaedit.config import check_choice
from vimaedit.decoding import decode_whole
from vimaedit.errors import ConfigError, RequestError
from vimaedit.images import Size, encode_mask, fit_mask
from vimaedit.piebench.annotations import SIDE, with_frame
from vimaedit.types import BoolArray

logger = logging.getLogger(__name__)

FILE_NAME = "records.parquet"
SUMMARY_NAME = "ingest.json"
BENCHMARK_KEY = b"vimaedit_benchmark"  # in the footer: which benchmark this is, and of what source
READ_THREADS = 8
GROUP_ROWS = 50  # of about 100 kB each
OTHER_SIZE = "picture_not_512"  # the published mask is of 512 x 512 pixels all the same
DUPLICATE = "duplicate_id"


@dataclass(frozen=True, kw_only=True)
class IngestConfig(Rejects, Pictures):
    """What is taken in (`jobs.ingest`)."""

    input: str = ""  # folder, file or glob of a benchmark as published
    output: str = ""  # folder, local or any fsspec URL; gets records.parquet and ingest.json
    layout: str = "auto"  # piebench, piebench++, gedit, imgedit, magicbrush, emu-edit, instructions (any with columns=); auto: by what lies there
    columns: dict[str, str] = field(
        default_factory=dict
    )  # of instructions: name in the contract -> name in the input (a+b: both)
    language: str = "en"  # of instructions that come in several (gedit: en, cn); empty: all

    def __post_init__(self) -> None:
        check_bases(self, IngestConfig)
        check_given(self, ("input", "output"))
        check_choice("layout", self.layout, NAMES)


@dataclass(frozen=True, kw_only=True)
class Defect:
    """Something wrong with an entry. `entry`: its id; `place`: where it stands in the source."""

    entry: str
    place: str
    problem: str

    def text(self) -> str:
        """Say it in one line."""
        return printable(mask_urls(f"{self.entry} ({self.place}): {self.problem}"))


@dataclass(frozen=True, kw_only=True)
class IngestSummary:
    """What an ingest came to; written as `ingest.json`.

    `left_out`: entries that cannot be edited. `incomplete`: records kept without a field that only scoring needs.
    `notes`: how many entries were taken otherwise than they stand, by kind; `blend_words`: how many have so many pairs.
    """

    benchmark: str
    input: str
    source_digest: str
    entries: int
    records: int
    left_out: tuple[Defect, ...] = ()
    incomplete: tuple[Defect, ...] = ()
    notes: dict[str, int] = field(default_factory=dict)
    blend_words: dict[str, int] = field(default_factory=dict)
    categories: dict[str, int] = field(default_factory=dict)

    def text(self) -> str:
        """Say it in a few lines."""
        lines = [f"{self.benchmark}: {self.records} records of {self.entries} entries, {len(self.left_out)} left out"]
        lines += [f"  left out {each.text()}" for each in self.left_out]
        lines += [f"  incomplete {each.text()}" for each in self.incomplete]
        lines.append("categories: " + (", ".join(f"{name} {count}" for name, count in self.categories.items()) or "none"))
        lines.append("blend words: " + (", ".join(f"{name} {count}" for name, count in self.blend_words.items()) or "none"))
        if self.notes:
            lines.append("taken otherwise than they stand: " + ", ".join(f"{name} {n}" for name, n in self.notes.items()))
        return "\n".join(lines)


def run_ingest(config: IngestConfig) -> IngestSummary:
    """Write the records of a benchmark, or find them written from the same source.

    Raises: ConfigError where the input is no benchmark known here, holds nothing that can be edited, or where the output
    holds something else.
    """
    output = locate(config.output)
    check_writable(output)
    source = open_source(config.input, config.layout, columns=config.columns, language=config.language, pictures=config)
    digest = source.digest(config.min_side_px, config.max_pixels)
    done = _finished(output, digest)
    if done is not None:
        logger.info("%s holds this benchmark already", mask_urls(output.url))
        return done
    tally = _Tally(source.notes)
    schema = _schema(source, digest)
    with new_file(output / FILE_NAME) as path:
        with open_writer(path, schema) as writer:
            for group in _groups(_records(config, source, tally)):
                write_group(writer, pa.Table.from_pylist(group, schema=schema))
        if not tally.records:
            first = f" ({tally.left_out[0].entry}: {tally.left_out[0].problem})" if tally.left_out else ""
            raise ConfigError(
                f"input: got {mask_urls(config.input)}, where none of {tally.entries} entries can be edited{first}; "
                "allowed: a benchmark with at least one"
            )
    summary = tally.summary(benchmark=source.name, input=mask_urls(config.input), source_digest=digest)
    put_json(output / SUMMARY_NAME, dataclasses.asdict(summary))
    return summary


def read_summary(folder: Location) -> IngestSummary | None:
    """Read what an ingest wrote of itself beside its records; None where there is none.

    Raises: Damaged where that is not what was written.
    """
    place = folder / SUMMARY_NAME
    content = read_json(place)
    if content is None:
        return None
    try:
        defects = {name: tuple(Defect(**each) for each in content[name]) for name in ("left_out", "incomplete")}
        return IngestSummary(**{**content, **defects})
    except (KeyError, TypeError) as error:
        raise damaged(place, error, "what jobs.ingest wrote", "remove it and run jobs.ingest again") from error


def _finished(output: Location, digest: str) -> IngestSummary | None:
    if not exists(output / FILE_NAME):
        if others := list_files(output, ".parquet"):
            raise ConfigError(
                f"output: got {mask_urls(output.url)}, which holds {others[0][0]}; allowed: a new or empty folder (nothing is deleted)"
            )
        return None
    try:
        facts = json.loads((read_footer(output / FILE_NAME).metadata or {}).get(BENCHMARK_KEY, b"{}"))
    except BrokenParquet as error:
        raise ConfigError(f"output: {error}") from error
    if facts.get("source_digest") != digest:
        raise ConfigError(
            f"output: got {mask_urls(output.url)}, which holds records of another source or other limits; "
            "allowed: a new or empty folder (nothing is deleted)"
        )
    try:
        return read_summary(output)
    except Damaged as error:
        logger.warning("output: %s", error)  # both are written again
        return None


def _schema(source: Source, digest: str) -> pa.Schema:
    facts = {"benchmark": source.name, "source_digest": digest}
    return with_features([*BENCHMARK_FIELDS, *source.extra_fields], metadata={BENCHMARK_KEY: json.dumps(facts)})


def _groups(records: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Cut records into row groups, small ones where pictures are large."""
    group: list[dict[str, Any]] = []
    size = 0
    for record in records:
        group.append(record)
        size += len(record["image"]["bytes"])
        if len(group) == GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


class _Tally:
    """Counts entries while they are read."""

    def __init__(self, passed: Mapping[str, int]) -> None:
        """`passed`: entries that the source passes over, counted by itself."""
        self.passed = passed
        self.entries = 0
        self.records = 0
        self.left_out: list[Defect] = []
        self.incomplete: list[Defect] = []
        self.notes: Counter[str] = Counter()
        self.pairs: Counter[int] = Counter()
        self.categories: Counter[str] = Counter()

    def summary(self, **facts: str) -> IngestSummary:
        return IngestSummary(
            **facts,
            entries=self.entries,
            records=self.records,
            left_out=tuple(self.left_out),
            incomplete=tuple(self.incomplete),
            notes={**+self.notes, **self.passed},
            blend_words={f"{n} pair{'s' * (n != 1)}": self.pairs[n] for n in sorted(self.pairs)},
            categories={
                name: self.categories[name] for name in sorted(self.categories, key=lambda name: (name == "none", name))
            },
        )


def _records(config: IngestConfig, source: Source, tally: _Tally) -> Iterator[dict[str, Any]]:
    """Yield the records in the order of the source, and count everything."""
    seen: set[str] = set()
    for entry, loaded in _loaded(config, source):
        tally.entries += 1
        annotation = entry.annotation
        if isinstance(loaded, RequestError) or annotation is None:
            problem = loaded if annotation is not None else entry.problem
            tally.left_out.append(Defect(entry=entry.id, place=entry.place, problem=str(problem)))
            continue
        size, mask = loaded.size, annotation.mask
        problems = (*annotation.problems, *loaded.problems)
        tally.records += 1
        tally.incomplete += [Defect(entry=entry.id, place=entry.place, problem=str(each)) for each in problems]
        tally.notes.update(annotation.notes)
        tally.notes[OTHER_SIZE] += mask is not None and size != (SIDE, SIDE)
        tally.notes[DUPLICATE] += entry.id in seen
        tally.pairs[len(annotation.blend)] += 1
        tally.categories[annotation.category or "none"] += 1
        seen.add(entry.id)
        yield {
            "id": entry.id,
            "image": {"bytes": loaded.data, "path": entry.picture},
            "source_prompt": annotation.source_prompt,
            "target_prompt": annotation.target_prompt,
            "blend_words": [dataclasses.asdict(phrase) for phrase in annotation.blend] or None,
            "category": annotation.category,
            "instruction": annotation.instruction,
            "reference_mask": None if mask is None else {"bytes": encode_mask(_over(mask, size)), "path": None},
            **entry.extra,
            **loaded.references,
        }


def _over(mask: BoolArray, size: Size) -> BoolArray:
    """Return a benchmark's mask as it lies over a picture: published masks are square, stretched over pictures that are not."""
    if size[0] == size[1]:
        return mask
    return with_frame(fit_mask(mask, size, (0, 0, *size), size[::-1]))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loaded:
    """An entry's picture as it is coded, its size (width, height), further pictures by column, and what is wrong with these."""

    data: bytes
    size: Size
    references: dict[str, Any]
    problems: list[RequestError]


def _loaded(config: IngestConfig, source: Source) -> Iterator[tuple[Entry, _Loaded | RequestError]]:
    """Yield every entry with its pictures, or with what is wrong with it; several are read at a time."""

    def load(entry: Entry) -> _Loaded | RequestError:
        if entry.annotation is None:
            assert entry.problem is not None
            return entry.problem
        try:
            data = entry.read()
            picture = decode_whole(data, min_side_px=config.min_side_px, max_pixels=config.max_pixels)
            height, width, _ = picture.pixels.shape
            references, problems = entry.references((width, height), picture.orientation)
        except RequestError as error:
            return error
        except OSError as error:
            if is_transient(error):
                raise
            return RequestError("unreadable", field="image", got=f"{type(error).__name__}: {error}", allowed="a picture")
        return _Loaded(data=data, size=(width, height), references=references, problems=problems)

    entries = source.entries()
    with ThreadPoolExecutor(READ_THREADS) as pool:
        while chunk := list(itertools.islice(entries, READ_THREADS)):  # each may hold a picture
            yield from zip(chunk, pool.map(load, chunk), strict=True)
