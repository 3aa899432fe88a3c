"""Which published form an input is in."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Mapping

from pipelines.ingest.instructions import LAYOUTS, Instructions
from pipelines.ingest.sources import MAPPING, PICTURES, PieBench, PieBenchPlusPlus, Source, column_names
from pipelines.options import Pictures
from pipelines.store.listing import is_parquet, list_input
from pipelines.store.location import Location, exists, list_files, locate
from pipelines.store.masking import mask_urls
from vimaedit.errors import ConfigError

logger = logging.getLogger(__name__)

LISTS = (".json", ".jsonl")
WANTED = {
    "piebench": f"a folder with {MAPPING} and {PICTURES}/",
    "piebench++": "a folder of Parquet files such as 0_random_140/V1-00000-of-00001.parquet",
    **{name: layout.looks for name, layout in LAYOUTS.items()},
}
NAMES = ("auto", *WANTED)


def open_source(url: str, layout: str, *, columns: Mapping[str, str], language: str, pictures: Pictures) -> Source:
    """Open an input in one of the forms `NAMES`; `auto`: in the one that it is in. `columns`, `language`: of instructions.

    Raises: ConfigError where it is not that.
    """
    place = locate(url)
    chosen = (find_layout(place) or "piebench++") if layout == "auto" else layout
    if columns and chosen not in LAYOUTS:
        raise ConfigError(
            f"columns: got {dict(columns)} with layout={layout}; allowed: nothing, or layout={', '.join(LAYOUTS)}"
        )
    if chosen == "piebench" and exists(_mapping(place)):
        return PieBench(_mapping(place))
    if chosen in LAYOUTS:
        root, files = (place, []) if place.path.endswith(LISTS) else _parquet_files(place)
        found = root if files else _list_file(place, LAYOUTS[chosen].lists)
        if found is not None:
            return Instructions(LAYOUTS[chosen], found, files, columns=columns, language=language, pictures=pictures)
    elif chosen == "piebench++":
        root, files = _parquet_files(place)
        if files:
            return PieBenchPlusPlus(root, files)
    allowed = ", or ".join(text for name, text in WANTED.items() if layout in ("auto", name))
    raise ConfigError(f"input: got {mask_urls(url)}, where nothing of that kind lies; allowed: {allowed}")


def is_published(url: str) -> bool:
    """Whether an input is a benchmark as published, and not yet one of records to edit."""
    try:
        return find_layout(locate(url)) is not None
    except ConfigError:  # a broken file among records is the editing run's to report
        return False


def find_layout(place: Location) -> str | None:
    """Return the published form that an input tells of itself; None: it may be anything.

    Raises: ConfigError where its first Parquet file is broken.
    """
    lists = {name: each for each, layout in LAYOUTS.items() for name in layout.lists}
    name = posixpath.basename(place.path)
    if found := next((each for each in lists if each == name or exists(place / each)), None):
        return lists[found]
    if exists(_mapping(place)):
        return "piebench"
    root, files = _parquet_files(place)
    names = set(column_names(root / files[0][0])) if files else set[str]()
    if {"blended_words", "mask"} <= names:
        return "piebench++"
    return next((each for each, layout in LAYOUTS.items() if layout.is_of(names)), None)


def _mapping(place: Location) -> Location:
    return place if place.path.endswith(".json") else place / MAPPING


def _list_file(place: Location, known: tuple[str, ...]) -> Location | None:
    """Find the list in a folder: one of a known name, else the only one."""
    if place.path.endswith(LISTS):
        return place if exists(place) else None
    there = [name for name, _ in list_files(place) if "/" not in name and name.endswith(LISTS)]
    named = [name for name in there if name in known] or there
    return place / named[0] if len(named) == 1 else None


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
