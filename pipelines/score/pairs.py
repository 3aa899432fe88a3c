"""What is scored: the requests of a benchmark, and for each of them where its edited picture lies."""

from __future__ import annotations

import hashlib
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.records.folders import folder_values, with_folders
from pipelines.records.parse import read_label
from pipelines.records.scan import InputSet, scan_inputs
from pipelines.score.config import ScoreConfig
from pipelines.store.listing import list_input
from pipelines.store.location import Location, is_complete, list_files, locate
from pipelines.store.parquet import BrokenParquet, read_batches, read_footer
from vimaedit.errors import ConfigError
from vimaedit.types import Status

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
LABELS = ("source_prompt", "target_prompt", "category", "instruction")
# Columns of an edited Parquet besides the picture; all are optional, but it has to say whose pictures they are.
EDITED_LABELS = ("id", "edit_index", "input_file", "input_row", "status", "error_message", "grounded", "seconds", "method")
SHOWN_NAMES = 5


@dataclass(frozen=True, kw_only=True)
class Edited:
    """Where an edited picture lies, and what is said of it. `row`: of a Parquet file; None: `file` is the picture itself."""

    file: str
    row: int | None
    id: str | None
    edit_index: int = 0
    place: tuple[str, int] | None = None  # input file and row that it was made of
    status: str = str(Status.OK)
    message: str | None = None
    grounded: bool | None = None
    seconds: float | None = None
    method: str | None = None


@dataclass(kw_only=True)
class Pair:
    """One request of the benchmark with its edited picture; None: there is none."""

    id: str
    edit_index: int
    file: str
    row: int
    source_prompt: str | None
    target_prompt: str | None
    category: str | None
    instruction: str | None
    edited: Edited | None = None


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where everything lies. Files are relative to the roots; `columns` maps names of the contract to the benchmark's."""

    benchmark_root: str
    benchmark_roots: tuple[str, ...]  # of the inputs, where the benchmark is several
    columns: Mapping[str, str]
    edited_root: str
    is_table: bool  # the edited pictures lie in Parquet files


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Everything that is scored. `unmatched`: edited pictures that belong to no request. `digest`: of the requests and of what was
    edited."""

    pairs: list[Pair]
    places: Places
    unmatched: list[str]
    warnings: list[str] = field(default_factory=list)
    digest: str = ""


def find_pairs(config: ScoreConfig) -> Pairs:
    """List the benchmark's requests and find the edited picture of each; no picture is read.

    Raises: ConfigError for a benchmark or edited pictures that cannot be read, and where nothing belongs together.
    """
    benchmark = scan_benchmark(config)
    pairs = list(_requests(config, benchmark))
    if config.limit is not None:
        del pairs[config.limit :]
    warnings = [f"benchmark: {file.path}: {file.error}; left out" for file in benchmark.files if file.error is not None]
    warnings += [f"benchmark: {each.text()}" for each in benchmark.left_out]
    root, entries, is_table = _find_edited(config, warnings)
    unmatched = match(pairs, entries)
    if not pairs or all(pair.edited is None for pair in pairs):
        names = ", ".join(repr(name) for name in unmatched[:SHOWN_NAMES]) or "none"
        raise ConfigError(
            f"edited: got {config.shown_edited}, where no picture belongs to one of the benchmark's {len(pairs)} requests (found: "
            f"{names}); allowed: the output of jobs.edit, Parquet with the benchmark's ids, or pictures named by them"
        )
    content = [(file.path, file.size, file.footer_digest) for file in benchmark.files]
    edited = [(entry.file, entry.row, entry.id, entry.status) for entry in entries]
    digest = hashlib.blake2b(repr((content, root.url, edited)).encode(), digest_size=16).hexdigest()
    return Pairs(
        pairs=pairs,
        places=Places(
            benchmark_root=benchmark.root,
            benchmark_roots=benchmark.roots,
            columns={**benchmark.columns.edit, **benchmark.columns.passed},
            edited_root=root.url,
            is_table=is_table,
        ),
        # With a limit most pictures belong to requests beyond it.
        unmatched=[] if config.limit is not None else unmatched,
        warnings=warnings,
        digest=digest,
    )


def scan_benchmark(config: ScoreConfig) -> InputSet:
    """Read the benchmark's footers.

    Raises: ConfigError naming the option.
    """
    try:
        return scan_inputs(config.benchmark, config.columns)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(f"benchmark:{text.removeprefix('input:')}" if text.startswith("input:") else text) from error


def match(pairs: Sequence[Pair], entries: Iterable[Edited]) -> list[str]:
    """Give every request its edited picture; return the names of those that belong to none.

    A row of a run belongs to the request it was made of, where that has its id; everything else goes by id and edit index.

    Raises: ConfigError for two pictures of one request.
    """
    by_place = {(pair.file, pair.row, pair.edit_index): pair for pair in pairs}
    by_id: dict[tuple[str, int], list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_id[pair.id, pair.edit_index].append(pair)
    unmatched = []
    for entry in entries:
        shown = entry.file if entry.row is None else str(entry.id)
        found = by_place.get((*entry.place, entry.edit_index)) if entry.place is not None else None
        if found is None or (entry.id is not None and found.id != entry.id):
            named = [each for name in _names(entry) for each in by_id.get(name, ())]
            found = named[0] if len(named) == 1 else None  # of several with one id none is known to be meant
        if found is None:
            unmatched.append(shown)
            continue
        if found.edited is not None:
            other = found.edited.file if found.edited.row is None else f"row {found.edited.row} of {found.edited.file}"
            this = entry.file if entry.row is None else f"row {entry.row} of {entry.file}"
            raise ConfigError(
                f"edited: got two pictures of record {found.id!r}, edit {found.edit_index} ({other}; {this}); allowed: one of each"
            )
        found.edited = entry
    return unmatched


def _names(entry: Edited) -> Iterator[tuple[str, int]]:
    """Yield the (id, edit index) that an entry may mean, of which at most one should exist.

    A picture is named by its record's id, as a path or as the last part of one; a further edit ends in its index: cat.1.png.
    """
    if entry.row is not None:
        yield str(entry.id), entry.edit_index
        return
    whole = posixpath.splitext(entry.file)[0]
    for name in dict.fromkeys((whole, posixpath.basename(whole))):
        yield name, 0
        stem, dot, index = name.rpartition(".")
        if dot and index.isdecimal():
            yield stem, int(index)


def _requests(config: ScoreConfig, benchmark: InputSet) -> Iterator[Pair]:
    """Yield every request of the readable files, in order, with what tables say of it."""
    columns = {**benchmark.columns.edit, **benchmark.columns.passed}
    wanted = {name: columns[name] for name in ("id", *LABELS) if name in columns}
    left = config.limit
    for file in benchmark.files:
        if file.error is not None:
            continue
        row, folders = 0, folder_values(benchmark.root, file.path)
        for batch in read_batches(locate(benchmark.root) / file.path, list(wanted.values())):
            batch = with_folders(batch, folders)
            present = set(batch.schema.names)
            cells = {name: batch.column(source).to_pylist() for name, source in wanted.items() if source in present}
            for offset in range(batch.num_rows):
                values = {name: cells[name][offset] for name in cells}
                targets = values.get("target_prompt")
                listed = targets if isinstance(targets, list) else [targets]
                for index, target in enumerate(listed or [None]):
                    yield Pair(
                        id=read_label(values.get("id"), f"{file.path}#{row}")[0],
                        edit_index=index,
                        file=file.path,
                        row=row,
                        source_prompt=_text(values.get("source_prompt")),
                        target_prompt=_text(target),
                        category=_text(values.get("category")),
                        instruction=_text(values.get("instruction")),
                    )
                row += 1
            if left is not None and row >= left:
                break
        if left is not None:
            left -= row
            if left <= 0:
                return


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _find_edited(config: ScoreConfig, warnings: list[str]) -> tuple[Location, list[Edited], bool]:
    """Find out what `edited` is, and list its pictures."""
    place = locate(config.edited)
    run_data = place / "data"
    is_run = bool(list_files(run_data, ".parquet"))
    if is_run and not is_complete(place):
        warnings.append(f"edited: {config.shown_edited} is an unfinished run (it has no _SUCCESS); what is there is scored")
    pictures = [] if is_run else [name for name, _ in list_files(place) if name.lower().endswith(PICTURE_SUFFIXES)]
    if pictures:
        return place, [Edited(file=name, row=None, id=None) for name in pictures], False
    try:
        listing = list_input(run_data.url if is_run else config.edited)
    except ConfigError as error:
        raise ConfigError(
            f"edited: got {config.shown_edited}, where there is neither Parquet nor a picture; allowed: the output of jobs.edit, "
            f"a Parquet file, folder or glob, or a folder of pictures ({', '.join(PICTURE_SUFFIXES)})"
        ) from error
    entries = [entry for name, _ in listing.files for entry in _table_entries(listing.root, name, config.edited_columns)]
    return listing.root, entries, True


def _table_entries(root: Location, name: str, columns: dict[str, str]) -> Iterator[Edited]:
    place = root / name
    try:
        present = read_footer(place).schema.to_arrow_schema().names
    except BrokenParquet as error:
        raise ConfigError(f"edited: {error}") from error
    sources = edited_columns(present, columns, name)
    labels = {label: sources[label] for label in EDITED_LABELS if label in sources}
    row = 0
    for batch in read_batches(place, list(labels.values())):
        cells = {label: batch.column(source).to_pylist() for label, source in labels.items()}
        for offset in range(batch.num_rows):
            values = {label: cells[label][offset] for label in cells}
            has_place = values.get("input_file") is not None and values.get("input_row") is not None
            yield Edited(
                file=name,
                row=row,
                id=None if values.get("id") is None else read_label(values["id"], str(values["id"]))[0],
                edit_index=int(values.get("edit_index") or 0),
                place=(str(values["input_file"]), int(values["input_row"])) if has_place else None,
                status=str(values.get("status") or Status.OK),
                message=_text(values.get("error_message")),
                grounded=values.get("grounded"),
                seconds=values.get("seconds"),
                method=_text(values.get("method")),
            )
            row += 1


def edited_columns(present: Sequence[str], columns: dict[str, str], file: str) -> dict[str, str]:
    """Map the names that are read of an edited Parquet to its columns.

    Raises: ConfigError for one that is not there, or a file without pictures or without a name for them.
    """
    for name, source in columns.items():
        if source not in present:
            raise ConfigError(
                f"edited_columns.{name}: got {source!r}, which {file} lacks; allowed: {', '.join(present) or '(it has none)'}"
            )
    known = (*EDITED_LABELS, "edited_image", "edit_mask", "crop_box", "original_size")
    found = {name: columns.get(name, name) for name in known if columns.get(name, name) in present}
    if "edited_image" not in found or not {"id", "input_row"} & found.keys():
        raise ConfigError(
            f"edited: got {file} with the columns {', '.join(present) or '(none)'}; allowed: edited_image and id "
            "(edited_columns.NAME=COLUMN says which they are)"
        )
    return found
