"""What is scored: the requests of a benchmark, and for each of them where its edited picture lies."""

from __future__ import annotations

import hashlib
import math
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.output.parts import find_foreign, foreign_text
from pipelines.output.plan import load_plan
from pipelines.records.folders import folder_values, with_folders
from pipelines.records.scan import InputSet, scan_inputs
from pipelines.records.values import read_column, read_label, whole_number, wrong_type
from pipelines.score.config import UNSCORED, ScoreConfig
from pipelines.store.listing import READABLE_SUFFIXES, list_input
from pipelines.store.location import Location, is_complete, list_files, locate
from pipelines.store.parquet import BrokenParquet, read_batches, read_footer
from vimaedit.errors import ConfigError, RequestError, shown
from vimaedit.types import LeftOut, Status

LABELS = ("source_prompt", "target_prompt", "category", "instruction")
# Columns of an edited Parquet besides the picture; all are optional, but it has to say whose pictures they are.
TEXT, WHOLE_NUMBER, NUMBER, TRUTH = "a text", "a whole number from 0 on", "a number", "true or false"
LABEL_KINDS = {
    **{"id": TEXT, "edit_index": WHOLE_NUMBER, "input_file": TEXT, "input_row": WHOLE_NUMBER, "status": TEXT},
    **{"error_message": TEXT, "grounded": TRUTH, "seconds": NUMBER, "method": TEXT},
}
EDITED_LABELS = tuple(LABEL_KINDS)
IDENTITY = ("id", "edit_index", "input_file", "input_row")
UNKNOWN_INDEX = -1  # of an entry whose identity cannot be read: it belongs to no request
SHOWN_NAMES = 5
SHOWN_EXAMPLES = 3  # of what is left out


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
    """One request of the benchmark with its edited picture; None: there is none. `problem`: why it cannot be scored."""

    id: str
    edit_index: int
    file: str
    row: int
    source_prompt: str | None
    target_prompt: str | None
    category: str | None
    instruction: str | None
    problem: str | None = None
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
        names += "".join(f"; {warning}" for warning in warnings[:SHOWN_NAMES])
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
            cells = {name: read_column(batch.column(source), name) for name, source in wanted.items() if source in present}
            for offset in range(batch.num_rows):
                values = {name: cells[name][offset] for name in cells}
                problem = _take_errors(values)
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
                        problem=problem,
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


def _take_errors(values: dict[str, Any]) -> str | None:
    """Put null in the place of values that could not be converted; say which that were."""
    errors = {name: value for name, value in values.items() if isinstance(value, RequestError)}
    values |= dict.fromkeys(errors)
    return "; ".join(map(str, errors.values())) or None


def _find_edited(config: ScoreConfig, warnings: list[str]) -> tuple[Location, list[Edited], bool]:
    """Find out what `edited` is, and list its pictures."""
    place = locate(config.edited)
    run_data = place / "data"
    is_run = bool(list_files(run_data, ".parquet"))
    if is_run and not is_complete(place):
        warnings.append(f"edited: {config.shown_edited} is an unfinished run (it has no _SUCCESS); what is there is scored")
    there = [] if is_run else [name for name, _ in list_files(place)]
    pictures = [name for name in there if name.lower().endswith(READABLE_SUFFIXES)]
    if pictures:
        others = [name for name in there if not name.lower().endswith(READABLE_SUFFIXES)]
        if others:
            examples = tuple(others[:SHOWN_EXAMPLES])
            reason = "they are no pictures, and the folder has some"
            left = LeftOut(what="edited: files", count=len(others), total=len(there), examples=examples, reason=reason)
            warnings.append(left.text())
        return place, [Edited(file=name, row=None, id=None) for name in pictures], False
    try:
        listing = list_input(run_data.url if is_run else config.edited)
    except ConfigError as error:
        raise ConfigError(
            f"edited: got {config.shown_edited}, where there is neither Parquet nor a picture; allowed: the output of jobs.edit, "
            f"a Parquet file, folder or glob, or a folder of pictures ({', '.join(READABLE_SUFFIXES)})"
        ) from error
    names = [name for name, _ in listing.files]
    if is_run and (stored := load_plan(place)) is not None:
        foreign = find_foreign(place, (unit.id for unit in stored.plan.units))
        warnings += [f"edited: {foreign_text(foreign)}"] if foreign else []
        names = [name for name in names if name not in foreign]
    entries = [entry for name in names for entry in _table_entries(listing.root, name, config.edited_columns, warnings)]
    return listing.root, entries, True


def _table_entries(root: Location, name: str, columns: dict[str, str], warnings: list[str]) -> Iterator[Edited]:
    """Yield the rows of one file. A row whose identity cannot be read belongs to no request; other values that are none are null."""
    place = root / name
    try:
        present = read_footer(place).schema.to_arrow_schema().names
    except BrokenParquet as error:
        raise ConfigError(f"edited: {error}") from error
    sources = edited_columns(present, columns, name)
    labels = {label: sources[label] for label in EDITED_LABELS if label in sources}
    row = 0
    wrong: dict[str, list[str]] = defaultdict(list)
    for batch in read_batches(place, list(labels.values())):
        cells = {label: read_column(batch.column(source), label) for label, source in labels.items()}
        for offset in range(batch.num_rows):
            values = {label: _read_label(label, cells[label][offset]) for label in cells}
            for label, value in values.items():
                if isinstance(value, RequestError):
                    wrong[label].append(f"row {row}: got {value.got}")
            is_nobody = any(isinstance(values.get(label), RequestError) for label in IDENTITY)
            _take_errors(values)
            has_place = values.get("input_file") is not None and values.get("input_row") is not None
            status, message = values.get("status") or str(Status.OK), values.get("error_message")
            if status not in tuple(Status):
                status, message = UNSCORED, f"status: got {shown(status)}; allowed: {', '.join(Status)}"
            yield Edited(
                file=name,
                row=row,
                id=values.get("id"),
                edit_index=UNKNOWN_INDEX if is_nobody else values.get("edit_index") or 0,
                place=(values["input_file"], values["input_row"]) if has_place else None,
                status=status,
                message=message,
                grounded=values.get("grounded"),
                seconds=values.get("seconds"),
                method=values.get("method"),
            )
            row += 1
    for label, found in wrong.items():
        lost = "belong to no request" if label in IDENTITY else "are taken as null"
        warnings.append(
            f"edited: {name}: {len(found)} values of {labels[label]} {lost}; the first: {found[0]}; allowed: {LABEL_KINDS[label]}"
        )


def _read_label(label: str, value: Any) -> Any:
    """Read a value that says something of an edited picture; NaN is null. Returns a RequestError for what is none of its kind."""
    if value is None or isinstance(value, RequestError):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None
    if label == "id":
        name, problem = read_label(value, "")
        return name if problem is None else problem
    kind = LABEL_KINDS[label]
    try:
        if kind == WHOLE_NUMBER:
            number = int(value) if isinstance(value, str) else whole_number(value)
            if number is None or number < 0:
                raise ValueError(value)
            return number
        if kind == NUMBER:
            measured = float(value)
            if not math.isfinite(measured):
                raise ValueError(value)
            return measured
        if kind == TRUTH:
            if not isinstance(value, bool):
                raise ValueError(value)
            return value
        return str(value)
    except (TypeError, ValueError, OverflowError):
        return wrong_type(label, value, allowed=kind)


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
    for source in (columns.get(name, name) for name in known):
        if present.count(source) > 1:
            raise ConfigError(
                f"edited: got {present.count(source)} columns named {source!r} in {file}; allowed: one of each name"
            )
    found = {name: columns.get(name, name) for name in known if columns.get(name, name) in present}
    if "edited_image" not in found or not {"id", "input_row"} & found.keys():
        raise ConfigError(
            f"edited: got {file} with the columns {', '.join(present) or '(none)'}; allowed: edited_image and id "
            "(edited_columns.NAME=COLUMN says which they are)"
        )
    return found
