"""A benchmark as published, entry by entry: PIE-Bench and PIE-Bench++."""

from __future__ import annotations

import functools
import hashlib
import json
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pyarrow as pa

from pipelines.records.values import converted, find_coded, read_column
from pipelines.store.fetch import ReferenceRules, fetch
from pipelines.store.location import Location, list_files
from pipelines.store.masking import mask_urls
from pipelines.store.parquet import READ_ROWS, BrokenParquet, read_batches, read_footer
from vimaedit.errors import ConfigError, RequestError, shown
from vimaedit.images import Size
from vimaedit.piebench.annotations import Annotation, read_entry, read_row

MAPPING = "mapping_file.json"
PICTURES = "annotation_images"
PLUS_COLUMNS = ("image", "source_prompt", "target_prompt", "blended_words", "mask")
PLUS_EXTRA = ("edit_action", "aspect_mapping")
INGEST_VERSION = 1  # raised where the same source gives other records


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One entry: its `annotation`, or the `problem` with it. `read` returns the coded picture, `picture` names it. `references`: of a
    picture of a size (width, height), stored in an EXIF orientation, further columns, and what is wrong with them."""

    id: str
    place: str
    picture: str | None
    read: Callable[[], bytes]
    annotation: Annotation | None
    problem: RequestError | None
    extra: dict[str, str | None] = field(default_factory=dict)
    references: Callable[[Size, int], tuple[dict[str, Any], list[RequestError]]] = lambda size, orientation: ({}, [])


class Source(Protocol):
    """A benchmark as published."""

    name: str
    extra_fields: tuple[pa.Field, ...]

    @property
    def notes(self) -> Mapping[str, int]:
        """How many entries were passed over on purpose, by kind, once all have been read."""
        ...

    def entries(self) -> Iterator[Entry]:
        """Yield all entries in the order of the source."""
        ...

    def digest(self, *limits: int) -> str:
        """Digest what the records depend on."""
        ...


class PieBench:
    """`mapping_file.json` beside `annotation_images/`."""

    name = "PIE-Bench"
    extra_fields: tuple[pa.Field, ...] = ()
    notes: Mapping[str, int] = {}

    def __init__(self, mapping: Location) -> None:
        folder = Location(mapping.fs, posixpath.dirname(mapping.path))
        self._pictures = folder / PICTURES
        # Who made the benchmark may have put links there: what they lead to has to lie in the folder that was named.
        self._rules = ReferenceRules(root=folder.url, allow_http=False, http_hosts=())
        self._content = read_file(mapping, self._rules)
        content = parse_json(self._content, mapping, allowed=MAPPING)
        if not isinstance(content, Pairs):
            raise ConfigError(
                f"input: got {mask_urls(mapping.url)}, which holds a {type(content).__name__}; allowed: an object of entries by id"
            )
        self._entries = content

    def entries(self) -> Iterator[Entry]:
        for number, (label, value) in enumerate(self._entries):
            place = f"{MAPPING}, entry {number}"
            picture, annotation, problem = None, None, None
            try:
                fields = fields_of(value, "an object")
                picture = _relative_path(fields.get("image_path"))
                annotation = read_entry(fields)
            except RequestError as error:
                problem = error
            read = functools.partial(_read_picture, self._rules, picture or "")
            label = label.encode(errors="backslashreplace").decode()  # JSON can name half a character
            yield Entry(id=label, place=place, picture=picture, read=read, annotation=annotation, problem=problem)

    def digest(self, *limits: int) -> str:
        listed = json.dumps([INGEST_VERSION, self.name, limits, list_files(self._pictures)])
        return hashlib.blake2b(self._content + listed.encode(), digest_size=16).hexdigest()


class PieBenchPlusPlus:
    """Parquet files in folders named like the categories."""

    name = "PIE-Bench++"
    extra_fields = tuple(pa.field(name, pa.string()) for name in PLUS_EXTRA)
    notes: Mapping[str, int] = {}

    def __init__(self, root: Location, files: list[tuple[str, int]]) -> None:
        self._root = root
        self._files = files
        for name, _ in files:
            missing = [column for column in PLUS_COLUMNS if column not in column_names(root / name)]
            if missing:
                raise ConfigError(
                    f"input: got {mask_urls((root / name).url)} without the columns {', '.join(missing)}; "
                    f"allowed: PIE-Bench++ ({', '.join(PLUS_COLUMNS)})"
                )

    def entries(self) -> Iterator[Entry]:
        for name, _ in self._files:
            for number, row in enumerate(_rows(self._root / name)):
                label, place = row.get("id"), f"{name}#{number}"
                value, annotation, problem = row["image"], None, None
                broken = [row[column] for column in PLUS_EXTRA if isinstance(row.get(column), RequestError)]
                try:
                    label = converted(label)
                    annotation = read_row(row, (self._root / name).path)
                    annotation = replace(annotation, problems=(*annotation.problems, *broken))
                except RequestError as error:
                    label, problem = None if label is error else label, error
                extra = {column: _text(row.get(column)) for column in PLUS_EXTRA}
                path = value.get("path") if isinstance(value, dict) else None
                yield Entry(
                    id=place if label is None else str(label),
                    place=place,
                    picture=path if isinstance(path, str) else None,
                    read=functools.partial(_picture_bytes, value),
                    annotation=annotation,
                    problem=problem,
                    extra=extra,
                )

    def digest(self, *limits: int) -> str:
        listed = json.dumps([INGEST_VERSION, self.name, limits, self._files])
        return hashlib.blake2b(listed.encode(), digest_size=16).hexdigest()


class Pairs(list[tuple[str, Any]]):
    """A JSON object in which a name may stand twice."""


def read_file(place: Location, rules: ReferenceRules) -> bytes:
    """Read a file that lies under the rules' root.

    Raises: ConfigError where it is none that may be read.
    """
    try:
        return fetch(posixpath.basename(place.path), rules)
    except RequestError as error:
        raise ConfigError(f"input: got {error.got}; allowed: {error.allowed}") from error


def parse_json(content: bytes, place: Location, *, allowed: str) -> Any:
    """Read JSON; its objects are `Pairs`.

    Raises: ConfigError naming the file.
    """
    try:
        return json.loads(content, object_pairs_hook=Pairs)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"input: got {mask_urls(place.url)}, which is no JSON ({error}); allowed: {allowed}") from error


def fields_of(entry: Any, allowed: str) -> dict[str, Any]:
    """Return the fields of an entry by their names.

    Raises: RequestError for what is no JSON object (`allowed` says what it may be), and for a name that stands twice.
    """
    if not isinstance(entry, Pairs):
        raise RequestError("wrong_type", field="entry", got=shown(entry), allowed=allowed)
    fields = dict(entry)
    if len(fields) < len(entry):
        ((name, times),) = Counter(name for name, _ in entry).most_common(1)
        raise RequestError("name_twice", field="entry", got=f"{shown(name)} {times} times", allowed="each name once")
    return fields


def _relative_path(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise RequestError("wrong_type", field="image_path", got=f"{value!r:.80}", allowed=f"a path under {PICTURES}/")
    parts = posixpath.normpath(value).split("/")
    if value.startswith("/") or ".." in parts or "\0" in value or "://" in value or not value.isprintable():
        raise RequestError("outside_root", field="image_path", got=f"{value!r:.80}", allowed=f"a path under {PICTURES}/")
    return value


def _read_picture(rules: ReferenceRules, name: str) -> bytes:
    try:
        return fetch(f"{PICTURES}/{name}", rules)
    except RequestError as error:
        raise RequestError(error.code, field="image_path", got=error.got, allowed=error.allowed) from error


def _picture_bytes(value: Any) -> bytes:
    data = find_coded(value, "image")
    if isinstance(data, str):
        raise RequestError("image_missing", field="image", got=repr(data), allowed="the picture itself")
    return data


def column_names(place: Location) -> list[str]:
    """Name a file's columns. Raises: ConfigError for a broken file, and for two columns of one name."""
    try:
        names = list(read_footer(place).schema.to_arrow_schema().names)
    except BrokenParquet as error:
        raise ConfigError(f"input: {error}") from error
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"input: got {len(twice)} columns of one name, {twice[0]!r}, in {mask_urls(place.url)}; allowed: one of each name"
        )
    return names


def _rows(place: Location) -> Iterator[dict[str, Any]]:
    """Yield rows; a RequestError stands where a value cannot be read."""
    names = [name for name in column_names(place) if name in ("id", *PLUS_COLUMNS, *PLUS_EXTRA)]
    for batch in read_batches(place, names, rows=READ_ROWS):
        cells = [read_column(batch.column(name), name) for name in names]
        yield from (dict(zip(names, values, strict=True)) for values in zip(*cells, strict=True))


def _text(value: Any) -> str | None:
    return None if value is None or isinstance(value, RequestError) else str(value)
