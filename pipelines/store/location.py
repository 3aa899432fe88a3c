"""Files and objects by URL: list, read, put atomically, and retry what is the infrastructure's fault."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import re
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, TypeVar
from urllib.parse import unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import get_filesystem_class, known_implementations

from pipelines.store.masking import mask_urls, refuse_credentials, without_secrets
from pipelines.store.patience import ATTEMPTS, FIRST_DELAY_S, MAX_DELAY_S, PATIENT_ATTEMPTS
from vimaedit.errors import ConfigError, shown

T = TypeVar("T")
logger = logging.getLogger(__name__)

COMPLETE_MARK = "_SUCCESS"
FILE_URL = re.compile(r"file:(?://(?:localhost)?)?(/.*)", re.DOTALL | re.IGNORECASE)
UNFINISHED = ".tmp"  # ends the name of a local file that is being written
# Raised by clients of object stores below the file system interface: resets, time-outs, endpoints that do not answer.
CLIENT_MODULES = frozenset({"aiohttp", "aiobotocore", "botocore", "urllib3"})
NOT_SET_UP = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoRegionError"})  # of such clients
PERMANENT_CLIENT_ERRORS = NOT_SET_UP | {"ParamValidationError"}
# 404 and names that are no files say something about the request, not about the service.
PERMANENT_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError)


class Damaged(ConfigError):
    """An object of an output is not what was written there. The text lacks the option that named the output."""


@dataclass(frozen=True)
class Location:
    """A place in a file system: `path` is absolute and without the scheme."""

    fs: Any
    path: str

    def __truediv__(self, name: str) -> Location:
        return Location(self.fs, f"{self.path.rstrip('/')}/{name}" if self.path else name)

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    @property
    def url(self) -> str:
        """The place as a user would write it."""
        return self.path if self.is_local else str(self.fs.unstrip_protocol(self.path))


def locate(url: str) -> Location:
    """Find the file system of a local path or of any fsspec URL. Listings are never cached: others write there too.

    Raises: ConfigError for a scheme that fsspec does not know, whose package is missing or that needs more than a URL, and for
    an object store's URL with credentials.
    """
    refuse_credentials(url)
    named = local_path(url)
    scheme = "file" if named is not None or "://" not in url else url.partition("://")[0]
    try:
        if scheme == "file" or ("::" in url and not _is_chain(url)):  # which fsspec would take for several in each other
            kind: Any = get_filesystem_class(scheme)
            url = url if named is None else named
            fs = kind(use_listings_cache=False, **kind._get_kwargs_from_urls(url))
            path = kind._strip_protocol(url)
        else:
            fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except Exception as error:  # each file system's constructor refuses in its own way
        if is_transient(error):
            raise
        text = mask_urls(f"got {url!r}: {error}")
        raise ConfigError(f"{text}; allowed: a local path, or a URL of a scheme known here") from error
    return Location(fs, str(path))


def local_path(url: str) -> str | None:
    """Return the path that a `file:` URL means, as `Path.as_uri` writes it (`%20` for a blank); None for what is no such URL.

    One that was made of a path without quoting is taken as it stands, where only that exists.
    """
    found = FILE_URL.fullmatch(url)
    if found is None:
        return None
    path = unquote(found[1])
    return found[1] if os.path.lexists(found[1]) and not os.path.lexists(path) else path


def _is_chain(url: str) -> bool:
    return any("://" in part or part in known_implementations for part in url.split("::")[1:])


def is_transient(error: BaseException) -> bool:
    """Whether an error is the infrastructure's (throttling, 403, 5xx, a time-out, a reset), so that trying again may help."""
    if isinstance(error, PERMANENT_ERRORS):
        return False
    if isinstance(error, OSError):  # an OSError without a number comes from Arrow and says that the content is broken
        return error.errno not in (None, errno.ENAMETOOLONG, errno.EINVAL) or isinstance(
            error, (TimeoutError, ConnectionError, PermissionError)
        )
    return _is_of_client(error) and type(error).__name__ not in PERMANENT_CLIENT_ERRORS


def _is_of_client(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in CLIENT_MODULES


def retry(call: Callable[[], T], *, attempts: int = ATTEMPTS, first_delay_s: float = FIRST_DELAY_S) -> T:
    """Call until it succeeds; transient errors are tried again after a delay that doubles up to `MAX_DELAY_S`, with jitter.

    A refusal (403) is tried no more than `ATTEMPTS` times: waiting seldom grants a right.

    Raises: ConfigError where the store's client is not set up; else the last error.
    """
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except Exception as error:
            if _is_of_client(error) and type(error).__name__ in NOT_SET_UP:
                raise ConfigError(
                    f"the object store's client: {mask_urls(str(error))}; allowed: credentials and region in the environment, a profile or a role"
                ) from error
            allowed = min(attempts, ATTEMPTS) if isinstance(error, PermissionError) else attempts
            if attempt >= allowed or not is_transient(error):
                raise
            delay_s = min(MAX_DELAY_S, first_delay_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
            text = mask_urls(f"{type(error).__name__}: {error}")
            logger.warning("attempt %d of %d: %s; again in %.1f s", attempt, allowed, text, delay_s)
            time.sleep(delay_s)
    raise AssertionError("unreachable")


def retry_remote(place: Location, call: Callable[[], T], *, attempts: int = PATIENT_ATTEMPTS) -> T:
    """`retry` where the place is remote; a local disk is asked once."""
    return call() if place.is_local else retry(call, attempts=attempts)


def read_bytes(place: Location, start: int | None = None, *, attempts: int = ATTEMPTS) -> bytes:
    """Read an object, from byte `start` on (negative: from the end).

    Raises: OSError without a number for a local pipe or device, which could hold the reader for ever.
    """
    _check_regular(place)
    return bytes(retry_remote(place, lambda: place.fs.cat_file(place.path, start=start), attempts=attempts))


def open_reader(place: Location) -> IO[bytes]:
    """Open an object for reading with seeks. The caller closes it and retries the whole read.

    Raises: as `read_bytes`.
    """
    _check_regular(place)
    # Parquet columns are read side by side in pieces that are large already: reading ahead would fetch most bytes twice.
    options = {} if place.is_local else {"cache_type": "none"}
    reader: IO[bytes] = place.fs.open(place.path, "rb", **options)
    return reader


def _check_regular(place: Location) -> None:
    if place.is_local and os.path.exists(place.path):
        mode = os.stat(place.path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # folders are refused by those who open them
            raise OSError(f"{place.path} is a pipe, socket or device, not a regular file")


def exists(place: Location) -> bool:
    """Whether an object or folder of this name is there."""
    return bool(retry_remote(place, lambda: place.fs.exists(place.path), attempts=ATTEMPTS))


def list_files(folder: Location, suffix: str = "", *, with_hidden: bool = False) -> list[tuple[str, int]]:
    """List the files below a folder whose names end in `suffix`: sorted (path relative to the folder, size in bytes).

    Hidden names are left out, unless they are asked for. A folder that is not there has no files.

    Raises: OSError for a local folder that may not be listed.
    """

    def listing() -> dict[str, int]:
        try:
            found: dict[str, dict[str, Any]] = folder.fs.find(folder.path, detail=True)
        except FileNotFoundError:
            return {}
        return {path: int(facts.get("size") or 0) for path, facts in found.items()}

    prefix = folder.path.rstrip("/") + "/"
    sizes = dict(_walk(folder.path)) if folder.is_local else retry(listing)
    files = []
    for path, size in sizes.items():
        name = path.removeprefix(prefix)
        if not name.endswith(suffix) or name.endswith("/") or not path.startswith(prefix):  # a slash ends the mark of a folder
            continue
        if with_hidden or not is_hidden(name):
            files.append((name, size))
    return sorted(files)


def _walk(folder: str) -> Iterator[tuple[str, int]]:
    """Yield what lies below a local folder and is none itself, also links to folders, with its size. fsspec says nothing of what
    it may not list."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):  # it may go while this goes through
            raise error

    for place, folders, names in os.walk(folder, onerror=refuse):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for path in (os.path.join(place, name) for name in [*names, *links]):
            try:
                yield path, os.stat(path).st_size
            except OSError:
                yield path, 0


def is_hidden(name: str) -> bool:
    """Whether a file is nobody's data by its relative path: a part of it begins with a dot or underscore."""
    return any(part.startswith((".", "_")) for part in name.split("/"))


def put_atomic(place: Location, data: bytes) -> None:
    """Write an object whole or not at all; what stood under the name is replaced."""
    if not place.is_local:
        retry(lambda: place.fs.pipe_file(place.path, data), attempts=PATIENT_ATTEMPTS)
        return
    with new_file(place) as path, open(path, "wb") as stream:
        stream.write(data)


def put_json(place: Location, content: Mapping[str, Any], *, allow_nan: bool = True) -> None:
    """Write plain values as one object, whole or not at all; no credentials are among them."""
    put_atomic(place, json.dumps(without_secrets(content), indent=2, allow_nan=allow_nan).encode())


def read_json(place: Location, fields: Mapping[str, Any] | None = None, remedy: str = "") -> dict[str, Any] | None:
    """Read what `put_json` wrote; None where there is nothing.

    `fields`: the type, or union of types, of every field that must be there; `remedy`: what helps where one is not.

    Raises: Damaged for an object that holds something else.
    """
    if not exists(place):
        return None
    try:
        content = json.loads(read_bytes(place))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
        for name, kind in (fields or {}).items():
            if name not in content:
                raise ValueError(f"{name} is missing")
            if not isinstance(content[name], kind):
                raise ValueError(f"{name} is {shown(content[name])}")
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise damaged(place, error, "a JSON object as it was written", remedy) from error
    return content


def damaged(place: Location, reason: Exception, allowed: str, remedy: str = "") -> Damaged:
    """Name an object that is not what was written there, and what helps."""
    text = "a folder stands there" if isinstance(reason, IsADirectoryError) else str(reason).strip()
    advice = f" ({remedy})" if remedy else ""
    return Damaged(mask_urls(f"got {place.url}, which is damaged ({text}); allowed: {allowed}{advice}"))


@contextmanager
def new_file(place: Location) -> Iterator[str]:
    """Give the path of a local file to write; it becomes the object when the block ends, and goes where that raises.

    Local: a temporary file whose name does not end as data files do, fsync, rename. Elsewhere an upload becomes visible
    when it is complete.
    """
    folder, name = os.path.split(place.path)
    if place.is_local:
        os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder if place.is_local else tempfile.gettempdir(), f".{name}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        yield temporary
        if not place.is_local:
            retry(lambda: place.fs.put_file(temporary, place.path), attempts=PATIENT_ATTEMPTS)
            return
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, place.path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def remove_unfinished(folder: Location) -> None:
    """Remove what processes that were killed have left of `new_file` in a local folder; nobody may be writing there."""
    if folder.is_local and os.path.isdir(folder.path):
        for entry in os.scandir(folder.path):
            if entry.name.startswith(".") and entry.name.endswith(UNFINISHED):
                os.unlink(entry.path)


def write_success(folder: Location) -> None:
    """Mark what a folder holds as complete."""
    put_atomic(folder / COMPLETE_MARK, b"")


def is_complete(folder: Location) -> bool:
    """Whether a folder is marked complete."""
    return exists(folder / COMPLETE_MARK)


def withdraw_success(folder: Location) -> None:
    """Take the mark away, before anything is done that it does not cover."""
    place = folder / COMPLETE_MARK
    if is_complete(folder):
        retry(lambda: place.fs.rm_file(place.path))


def check_writable(output: Location, *folders: str) -> None:
    """Make sure that objects can be written below `output` and its `folders`, and leave nothing behind.

    Raises: ConfigError naming the place and what stands in the way; a remote service's faults as they are, after retries.
    """
    if type(output.fs) is MemoryFileSystem:
        raise ConfigError(
            f"output: got {output.url}, which is the memory of this process alone and ends with it; allowed: a folder, or a store that "
            "every worker can write to"
        )
    try:
        if output.is_local:
            _check_folder(output.path)
            for path in ((output / name).path for name in folders):
                if os.path.lexists(path) and not os.path.isdir(path):
                    raise _no_folder(path)
        else:
            probe = output / f".writable-{uuid.uuid4().hex}"
            retry(lambda: probe.fs.pipe_file(probe.path, b""))
            retry(lambda: probe.fs.rm_file(probe.path))
    except Exception as error:
        if not output.is_local and is_transient(error) and not isinstance(error, PermissionError):
            raise
        text = mask_urls(f"got {output.url!r}, where nothing can be written: {type(error).__name__}: {error}")
        raise ConfigError(f"output: {text}; allowed: a folder that can be made or written to") from error


def _check_folder(path: str) -> None:
    """Look from the folder upwards for the first that exists; it has to be a folder that may be written to."""
    while not os.path.lexists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        raise _no_folder(path)
    descriptor, name = tempfile.mkstemp(prefix=".writable-", dir=path)
    os.close(descriptor)
    os.unlink(name)


def _no_folder(path: str) -> NotADirectoryError:
    return NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
