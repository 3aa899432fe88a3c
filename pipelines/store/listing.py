"""Which files an input means: a file, a folder, a glob or several of them; and whether a run's output would lie among them."""

from __future__ import annotations

import dataclasses
import functools
import glob
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from fsspec.utils import glob_translate

from pipelines.store.location import Location, exists, is_hidden, list_files, locate, read_bytes, retry_remote
from pipelines.store.masking import mask_urls, printable
from vimaedit.errors import ConfigError
from vimaedit.types import LeftOut

SUFFIX = ".parquet"
MAGIC, ENCRYPTED = b"PAR1", b"PARE"  # the last bytes of a file
# Taken at their word, for records may lie beside a million pictures that they name.
READABLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")  # of pictures
PICTURE_SUFFIXES = (*READABLE_SUFFIXES, ".heic", ".jp2")
MAGIC_SIGNS = re.compile(r"[*?\[]")
OUTPUT_OBJECTS = ("data/part-0.parquet", "manifest.parquet", "plan/files.parquet")  # of a run, as an input might list them
LOOKING_THREADS = 16
SHOWN_NAMES = 3

Inputs = str | list[str]  # a path, glob or URL, or several


@dataclass(frozen=True, kw_only=True)
class Listing:
    """An input's root and its files: sorted (path relative to the root, size in bytes).

    `roots`: of the inputs, where there are several, whose files' paths are relative to what the roots have in common. `left_out`:
    files that are no Parquet.
    """

    root: Location
    files: list[tuple[str, int]]
    roots: tuple[Location, ...]
    left_out: tuple[LeftOut, ...] = ()


def list_input(inputs: Inputs) -> Listing:
    """List the Parquet files of an input. A path that exists is taken literally, whatever signs are in it.

    What lies in a folder is Parquet by its last bytes; named so (`.parquet`) or asked for by a glob that names a suffix, a file
    counts as one whatever it holds.

    Raises: ConfigError where there is none, or one is meant twice.
    """
    urls = as_list(inputs)
    try:
        listings = [_list_one(url) for url in urls]
    except OSError as error:
        if error.filename is None:
            raise
        text = f"got {shown_inputs(inputs)}, where {mask_urls(str(error.filename))} cannot be read ({error.strerror})"
        raise ConfigError(f"input: {text}; allowed: files and folders that may be read") from error
    return listings[0] if len(listings) == 1 else _joined(listings, inputs)


def as_list(inputs: Inputs) -> list[str]:
    """Return the inputs one by one.

    Raises: ConfigError for an empty one among them.
    """
    urls = [inputs] if isinstance(inputs, str) else list(inputs)
    if not urls or not all(urls):
        raise ConfigError(f"input: got {shown_inputs(inputs)}; allowed: a path or URL, or a list of them")
    return urls


def shown_inputs(inputs: Inputs) -> str:
    """Return inputs as texts show them, without credentials."""
    return mask_urls(repr(inputs))


def named_inputs(inputs: Inputs) -> str:
    """Return the names of inputs in a row, without credentials."""
    return ", ".join(map(mask_urls, as_list(inputs)))


def own_root(root: str, roots: Sequence[str], name: str) -> str:
    """Return the root of the input that a file belongs to, by its path relative to what all inputs have in common."""
    path = f"{root}{name}" if root.endswith("://") else f"{root.rstrip('/')}/{name}"  # all buckets have no name in common
    return max((each for each in roots if path.startswith(f"{each.rstrip('/')}/")), key=len, default=root)


def refuse_output_in_input(output: Location, inputs: Inputs) -> None:
    """Check that nothing a run writes will count as its input, and that the input does not lie in the output.

    Raises: ConfigError.
    """
    for url in as_list(inputs):
        place = locate(url)
        pattern = _pattern(place)
        if pattern is not None:
            root = pattern.root
            spellings = {output.path, _as_below(output, root)}
            inside = any(pattern.reaches(f"{path}/{name}") for path in spellings for name in OUTPUT_OBJECTS)
        elif _is_file(place):
            root, inside = split(place)[0], False
        else:
            root, inside = place, _lies_in(output, place)
        if inside or _lies_in(root, output):
            raise ConfigError(
                f"output: got {output.url} with input={url}: one would lie in the other; allowed: a folder beside the input"
            )


def split(place: Location) -> tuple[Location, str]:
    """Take a place apart into its folder and the rest of its path, which begins with a slash where a key has several in a row."""
    folder = place.path.rpartition("/")[0].rstrip("/")
    return Location(place.fs, folder or _top(place)), place.path[len(folder) + 1 :]


@dataclass(frozen=True, kw_only=True)
class _Pattern:
    """A glob: the folder in front of its first sign, and what is matched. Folders that match are taken with all below them."""

    root: Location
    path: str

    def names(self, path: str) -> bool:
        """Whether a file matches a pattern that says how names end: it is asked for, whatever it holds. `dir/*` does not."""
        has_suffix = not MAGIC_SIGNS.search(posixpath.splitext(self.path)[1]) and "." in posixpath.basename(self.path)
        return has_suffix and self._matches(path)

    def reaches(self, path: str) -> bool:
        """Whether a file matches, or lies in a folder that does."""
        parts = path.removeprefix(self.root.path.rstrip("/") + "/").split("/")
        return any(self._matches("/".join([self.root.path.rstrip("/"), *parts[:depth]])) for depth in range(1, len(parts) + 1))

    def _matches(self, path: str) -> bool:
        return self._expression.fullmatch(path) is not None

    @functools.cached_property
    def _expression(self) -> re.Pattern[str]:
        return re.compile(glob_translate(self.path))


def _list_one(url: str) -> Listing:
    place = locate(url)
    pattern = _pattern(place)
    if pattern is None and _is_file(place):
        size = int(retry_remote(place, lambda: place.fs.size(place.path)) or 0)
        root, name = split(place)
        return Listing(root=root, files=[(name, size)], roots=(root,))
    root = place if pattern is None else pattern.root
    taken, others = [], []
    for name, size in list_files(root, with_hidden=True):
        path = (root / name).path
        if pattern is not None and not pattern.reaches(path):
            continue
        if not is_hidden(name) and (name.lower().endswith(SUFFIX) or (pattern is not None and pattern.names(path))):
            taken.append((name, size))
        else:
            others.append((name, size))
    more, left_out = _look_into(root, others, len(taken))
    taken = sorted([*taken, *more])
    if not taken:
        found = "".join(f" ({each.text()})" for each in left_out)
        raise ConfigError(
            f"input: got {shown_inputs(url)}, where there is no Parquet file{found}; allowed: a file, a folder or a glob of "
            "Parquet files, or a list of them"
        )
    return Listing(root=root, files=taken, roots=(root,), left_out=left_out)


def _look_into(
    root: Location, others: Sequence[tuple[str, int]], num_taken: int
) -> tuple[list[tuple[str, int]], tuple[LeftOut, ...]]:
    """Take the Parquet files among those whose names do not say it, and account for the rest."""
    hidden = [name for name, _ in others if is_hidden(name)]
    pictures = [name for name, _ in others if not is_hidden(name) and name.lower().endswith(PICTURE_SUFFIXES)]
    apart = {*hidden, *pictures}
    looked = [entry for entry in others if entry[0] not in apart]
    with ThreadPoolExecutor(LOOKING_THREADS) as pool:
        ends = list(pool.map(lambda entry: _end(root / entry[0], entry[1]), looked))
    taken = [entry for entry, end in zip(looked, ends, strict=True) if end in (MAGIC, ENCRYPTED)]
    # Marks, checksums and unfinished writes are nobody's data; Parquet is, wherever it stands.
    named = [name for name in hidden if name.lower().endswith(SUFFIX)]
    reasons = (
        ("their names begin with a dot or an underscore", named),
        ("they are pictures, which records may name", pictures),
        ("they are no regular files; links to folders are not followed", _with(looked, ends, lambda end: end is None)),
        ("they do not end as Parquet files do", _with(looked, ends, lambda end: end not in (None, MAGIC, ENCRYPTED))),
    )
    total = num_taken + len(pictures) + len(looked) + len(named)
    return taken, tuple(
        LeftOut(
            what=f"files in {mask_urls(root.url)}",
            count=len(names),
            total=total,
            examples=tuple(printable(name) for name in names[:SHOWN_NAMES]),
            reason=reason,
        )
        for reason, names in reasons
        if names
    )


def _with(
    entries: Iterable[tuple[str, int]], ends: Iterable[bytes | None], wanted: Callable[[bytes | None], bool]
) -> list[str]:
    return [name for (name, _), end in zip(entries, ends, strict=True) if wanted(end)]


def is_parquet(place: Location, size: int) -> bool:
    """Whether a file ends as Parquet files do."""
    return _end(place, size) in (MAGIC, ENCRYPTED)


def _end(place: Location, size: int) -> bytes | None:
    """Read the last bytes of a file; None for a local place that is no regular file, which could hold the reader for ever."""
    if place.is_local:
        try:
            if not stat.S_ISREG(os.stat(place.path).st_mode):
                return None
        except OSError:  # it has gone, or is a link that leads nowhere or around
            return None
    return read_bytes(place, start=max(0, size - len(MAGIC)))[-len(MAGIC) :] if size else b""


def _joined(listings: Sequence[Listing], inputs: Inputs) -> Listing:
    """Put several inputs together: files by their paths relative to the folder that all have in common."""
    # Spelled with `..` a folder would share another beginning with its neighbours than it has.
    listings = [dataclasses.replace(listing, root=_without_dots(listing.root)) for listing in listings]
    roots = [listing.root for listing in listings]
    if len({type(root.fs) for root in roots}) > 1:
        raise ConfigError(f"input: got {shown_inputs(inputs)}, which lie in several stores; allowed: places in one")
    common = os.path.commonprefix([root.path.rstrip("/").split("/") for root in roots])
    root = Location(roots[0].fs, "/".join(common) or _top(roots[0]))
    start = len((root / "").path)
    entries = [((listing.root / name), size) for listing in listings for name, size in listing.files]
    seen: set[str] = set()
    for place, _ in entries:
        if (path := _real_path(place)) in seen:
            raise ConfigError(
                f"input: got {shown_inputs(inputs)}, where {mask_urls(place.url)} is meant twice; allowed: every file once"
            )
        seen.add(path)
    return Listing(
        root=root,
        files=sorted((place.path[start:], size) for place, size in entries),
        roots=tuple(roots),
        left_out=tuple(each for listing in listings for each in listing.left_out),
    )


def _without_dots(place: Location) -> Location:
    has_dots = place.is_local and {".", ".."} & set(place.path.split("/"))
    return Location(place.fs, posixpath.realpath(place.path)) if has_dots else place


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


def _top(place: Location) -> str:
    return "/" if place.path.startswith("/") else ""


def _is_file(place: Location) -> bool:
    return bool(retry_remote(place, lambda: place.fs.isfile(place.path)))


def _lies_in(place: Location, folder: Location) -> bool:
    """Whether a place is a folder or lies in it; links are followed on a local disk."""
    if type(place.fs) is not type(folder.fs):
        return False
    own, other = (_real_path(entry) for entry in (place, folder))
    return own == other or own.startswith(other.rstrip("/") + "/")


def _as_below(place: Location, root: Location) -> str:
    """Spell a place as one below a folder that it lies in, whatever links lead to it; else as it stands."""
    if not _lies_in(place, root):
        return place.path
    return root.path.rstrip("/") + _real_path(place)[len(_real_path(root).rstrip("/")) :]


def _real_path(place: Location) -> str:
    return posixpath.realpath(place.path) if place.is_local else place.path.rstrip("/")
