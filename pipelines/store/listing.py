"""Which files an input means: a file, a folder or a glob; and whether a run's output would lie among them."""

from __future__ import annotations

import glob
import posixpath
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from fsspec.utils import glob_translate

from pipelines.store.location import Location, exists, list_files, locate, retry_remote
from vimaedit.errors import ConfigError

SUFFIX = ".parquet"
MAGIC_SIGNS = re.compile(r"[*?\[]")
OUTPUT_OBJECTS = ("data/part-0.parquet", "manifest.parquet", "plan/files.parquet")  # of a run, as an input might list them


@dataclass(frozen=True, kw_only=True)
class Listing:
    """An input's root and its files: sorted (path relative to the root, size in bytes)."""

    root: Location
    files: list[tuple[str, int]]


def list_input(url: str) -> Listing:
    """List the files of an input. A path that exists is taken literally, whatever signs are in it.

    Raises: ConfigError where there is none.
    """
    place = locate(url)
    pattern = _pattern(place)
    if pattern is not None:
        listing = _list_pattern(pattern)
    elif _is_file(place):
        size = int(retry_remote(place, lambda: place.fs.size(place.path)) or 0)
        listing = Listing(root=_folder(place), files=[(posixpath.basename(place.path), size)])
    else:
        listing = Listing(root=place, files=list_files(place, SUFFIX))
    if not listing.files:
        raise ConfigError(
            f"input: got {url!r}, where there is no Parquet file; allowed: a file, a folder or a glob of Parquet files"
        )
    return listing


def refuse_output_in_input(output: Location, url: str) -> None:
    """Check that nothing a run writes will count as its input, and that the input does not lie in the output.

    Raises: ConfigError.
    """
    place = locate(url)
    pattern = _pattern(place)
    if pattern is not None:
        root = pattern.root
        inside = any(pattern.takes(f"{output.path}/{name}") for name in OUTPUT_OBJECTS)
    elif _is_file(place):
        root, inside = _folder(place), False
    else:
        root, inside = place, _lies_in(output, place)
    if inside or _lies_in(root, output):
        raise ConfigError(
            f"output: got {output.url} with input={url}: one would lie in the other; allowed: a folder beside the input"
        )


@dataclass(frozen=True, kw_only=True)
class _Pattern:
    """A glob: the folder in front of its first sign, and what is matched. Folders that match are taken with all below them."""

    root: Location
    path: str

    def takes(self, path: str) -> bool:
        """Whether a file is the input's: it matches, or lies in a folder that does. `dir/*` means Parquet files."""
        matches = re.compile(glob_translate(self.path)).fullmatch
        names_suffix = not MAGIC_SIGNS.search(posixpath.splitext(self.path)[1]) and "." in posixpath.basename(self.path)
        if matches(path) and (path.endswith(SUFFIX) or names_suffix):
            return True
        parts = path.removeprefix(self.root.path.rstrip("/") + "/").split("/")
        folders = ("/".join([self.root.path.rstrip("/"), *parts[:depth]]) for depth in range(1, len(parts)))
        return path.endswith(SUFFIX) and any(matches(folder) for folder in folders)


def _pattern(place: Location) -> _Pattern | None:
    """Read a path as a glob; None where it exists as it stands, has no signs of a glob, or is a web address with a query."""
    if not MAGIC_SIGNS.search(place.path) or urlsplit(place.path).scheme in ("http", "https") or exists(place):
        return None
    parts = place.path.split("/")
    for depth, part in enumerate(parts):
        folder = Location(place.fs, "/".join(parts[: depth + 1]))
        if MAGIC_SIGNS.search(part) and not exists(folder):
            root = Location(place.fs, "/".join(parts[:depth]))
            return _Pattern(root=root, path="/".join([glob.escape(root.path), *parts[depth:]]))
    return None


def _list_pattern(pattern: _Pattern) -> Listing:
    root = pattern.root
    return Listing(root=root, files=[(name, size) for name, size in list_files(root) if pattern.takes((root / name).path)])


def _is_file(place: Location) -> bool:
    return bool(retry_remote(place, lambda: place.fs.isfile(place.path)))


def _folder(place: Location) -> Location:
    return Location(place.fs, posixpath.dirname(place.path))


def _lies_in(place: Location, folder: Location) -> bool:
    """Whether a place is a folder or lies in it; links are followed on a local disk."""
    if type(place.fs) is not type(folder.fs):
        return False
    own, other = (_real_path(entry) for entry in (place, folder))
    return own == other or own.startswith(other.rstrip("/") + "/")


def _real_path(place: Location) -> str:
    return posixpath.realpath(place.path) if place.is_local else place.path.rstrip("/")
