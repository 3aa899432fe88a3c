"""The two forms in which the benchmark is published, entry by entry."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.records.values import find_coded
from pipelines.store.fetch import ReferenceRules, fetch
from pipelines.store.listing import is_parquet, list_input
from pipelines.store.location import Location, exists, list_files, locate
from pipelines.store.masking import mask_urls
from pipelines.store.parquet import READ_ROWS, BrokenParquet, read_batches, read_footer
from vimaedit.errors import ConfigError, RequestError
from vimaedit.piebench.annotations import Annotation, read_entry, read_row

logger = logging.getLogger(__name__)

MAPPING = "mapping_file.json"
PICTURES = "annotation_images"
PLUS_COLUMNS = ("image", "source_prompt", "target_prompt", "blended_words", "mask")
PLUS_EXTRA = ("edit_action", "aspect_mapping")
INGEST_VERSION = 1  # raised where the same source gives other records


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One entry: its `annotation`, or the `problem` with it. `read` returns the coded picture, `picture` names it."""

    id: str
    place: str
    picture: str | None
    read: Callable[[], bytes]
    annotation: Annotation | None
    problem: RequestError | None
    extra: dict[str, str | None] = field(default_factory=dict)


class Source(Protocol):
    """A benchmark as published."""

    name: str
    extra_columns: tuple[str, ...]

    def entries(self) -> Iterator[Entry]:
        """Yield all entries in the order of the source."""
        ...

    def digest(self, *limits: int) -> str:
        """Digest what the records depend on."""
        ...


def open_source(url: str, layout: str) -> Source:
    """Find out what an input is and open it. `layout`: `auto`, `piebench` or `piebench++`.

    Raises: ConfigError where it is not that.
    """
    place = locate(url)
    mapping = place if posixpath.basename(place.path).endswith(".json") else place / MAPPING
    if layout in ("auto", "piebench") and exists(mapping):
        return PieBench(mapping)
    root, files = _parquet_files(place)
    if files and layout != "piebench":
        return PieBenchPlusPlus(root, files)
    wanted = {
        "piebench": f"a folder with {MAPPING} and {PICTURES}/",
        "piebench++": "a folder of Parquet files such as 0_random_140/V1-00000-of-00001.parquet",
    }
    allowed = ", or ".join(text for name, text in wanted.items() if layout in ("auto", name))
    raise ConfigError(f"input: got {mask_urls(url)}, where nothing of that kind lies; allowed: {allowed}")


def is_published(url: str) -> bool:
    """Whether an input is a benchmark as published, and not yet one of records to edit."""
    place = locate(url)
    if posixpath.basename(place.path) == MAPPING or exists(place / MAPPING):
        return True
    root, files = _parquet_files(place)
    try:
        return bool(files) and {"blended_words", "mask"} <= set(_columns(root / files[0][0]))
    except ConfigError:  # a broken file among records is the editing run's to report
        return False


def _parquet_files(place: Location) -> tuple[Location, list[tuple[str, int]]]:
    """List a folder's Parquet files, or the one that is named itself; returns what their names are relative to."""
    try:
        listing = list_input(place.url)
    except ConfigError:  # there is none
        return place, []
    name, size = listing.files[0]
    if len(listing.files) == 1 and not name.endswith(".parquet") and not is_parquet(listing.root / name, size):
        return place, []
    for each in listing.left_out:
        logger.warning("%s", each.text())
    return listing.root, listing.files


class PieBench:
    """`mapping_file.json` beside `annotation_images/`."""

    name = "PIE-Bench"
    extra_columns: tuple[str, ...] = ()

    def __init__(self, mapping: Location) -> None:
        folder = Location(mapping.fs, posixpath.dirname(mapping.path))
        self._pictures = folder / PICTURES
        # Who made the benchmark may have put links there: what they lead to has to lie in the folder that was named.
        self._rules = ReferenceRules(root=folder.url, allow_http=False, http_hosts=())
        try:
            self._content = fetch(posixpath.basename(mapping.path), self._rules)
        except RequestError as error:
            raise ConfigError(f"input: got {error.got}; allowed: {error.allowed}") from error
        try:
            content = json.loads(self._content, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"input: got {mask_urls(mapping.url)}, which is no JSON ({error}); allowed: {MAPPING}") from error
        if not isinstance(content, _Pairs):
            raise ConfigError(
                f"input: got {mask_urls(mapping.url)}, which holds a {type(content).__name__}; allowed: an object of entries by id"
            )
        self._entries = content

    def entries(self) -> Iterator[Entry]:
        for number, (label, value) in enumerate(self._entries):
            place = f"{MAPPING}, entry {number}"
            picture, annotation, problem = None, None, None
            try:
                if not isinstance(value, _Pairs):
                    raise RequestError("wrong_type", field="entry", got=f"{value!r:.80}", allowed="an object")
                fields = dict(value)
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
    extra_columns: tuple[str, ...] = PLUS_EXTRA

    def __init__(self, root: Location, files: list[tuple[str, int]]) -> None:
        self._root = root
        self._files = files
        for name, _ in files:
            missing = [column for column in PLUS_COLUMNS if column not in _columns(root / name)]
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
                try:
                    annotation = read_row(row, (self._root / name).path)
                except RequestError as error:
                    problem = error
                extra = {column: None if row.get(column) is None else str(row[column]) for column in PLUS_EXTRA}
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


class _Pairs(list[tuple[str, Any]]):
    """A JSON object in which a name may stand twice."""


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


def _columns(place: Location) -> list[str]:
    try:
        return list(read_footer(place).schema.to_arrow_schema().names)
    except BrokenParquet as error:
        raise ConfigError(f"input: {error}") from error


def _rows(place: Location) -> Iterator[dict[str, Any]]:
    for batch in read_batches(place, rows=READ_ROWS):
        yield from batch.to_pylist()
