"""Files and objects by URL: list, read, put atomically, and retry what is the infrastructure's fault."""

from __future__ import annotations

import errno
import logging
import os
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

T = TypeVar("T")
logger = logging.getLogger(__name__)

ATTEMPTS = 5
FIRST_DELAY_S = 0.5
# Raised by clients of object stores below the file system interface: resets, time-outs, endpoints that do not answer.
CLIENT_MODULES = frozenset({"aiohttp", "aiobotocore", "botocore", "urllib3"})
PERMANENT_CLIENT_ERRORS = frozenset({"NoCredentialsError", "ParamValidationError", "ProfileNotFound", "NoRegionError"})
# 404 and names that are no files say something about the request, not about the service.
PERMANENT_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError)


@dataclass(frozen=True)
class Location:
    """A place in a file system: `path` is absolute and without the scheme."""

    fs: Any
    path: str

    def __truediv__(self, name: str) -> Location:
        return Location(self.fs, f"{self.path.rstrip('/')}/{name}")

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    @property
    def url(self) -> str:
        """The place as a user would write it."""
        return self.path if self.is_local else str(self.fs.unstrip_protocol(self.path))


def locate(url: str) -> Location:
    """Find the file system of a local path or of any fsspec URL. Listings are never cached: others write there too."""
    fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return Location(fs, str(path))


def is_transient(error: BaseException) -> bool:
    """Whether an error is the infrastructure's (throttling, 403, 5xx, a time-out, a reset), so that trying again may help."""
    if isinstance(error, PERMANENT_ERRORS):
        return False
    if isinstance(error, OSError):  # an OSError without a number comes from Arrow and says that the content is broken
        return error.errno not in (None, errno.ENAMETOOLONG, errno.EINVAL) or isinstance(
            error, (TimeoutError, ConnectionError, PermissionError)
        )
    kind = type(error)
    return kind.__module__.split(".")[0] in CLIENT_MODULES and kind.__name__ not in PERMANENT_CLIENT_ERRORS


def retry(call: Callable[[], T], *, attempts: int = ATTEMPTS, first_delay_s: float = FIRST_DELAY_S) -> T:
    """Call until it succeeds; transient errors are tried again after a delay that doubles, with jitter.

    Raises: the last error.
    """
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except Exception as error:
            if attempt == attempts or not is_transient(error):
                raise
            delay_s = first_delay_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
            logger.warning("attempt %d of %d: %s: %s; again in %.1f s", attempt, attempts, type(error).__name__, error, delay_s)
            time.sleep(delay_s)
    raise AssertionError("unreachable")


def retry_remote(place: Location, call: Callable[[], T]) -> T:
    """`retry` where the place is remote; a local disk is asked once."""
    return call() if place.is_local else retry(call)


def read_bytes(place: Location, start: int | None = None) -> bytes:
    """Read an object, from byte `start` on (negative: from the end)."""
    return bytes(retry_remote(place, lambda: place.fs.cat_file(place.path, start=start)))


def open_reader(place: Location) -> IO[bytes]:
    """Open an object for reading with seeks. The caller closes it and retries the whole read."""
    # Parquet columns are read side by side in pieces that are large already: reading ahead would fetch most bytes twice.
    options = {} if place.is_local else {"cache_type": "none"}
    reader: IO[bytes] = place.fs.open(place.path, "rb", **options)
    return reader


def exists(place: Location) -> bool:
    """Whether an object or folder of this name is there."""
    return bool(retry_remote(place, lambda: place.fs.exists(place.path)))


def list_files(folder: Location, suffix: str = "") -> list[tuple[str, int]]:
    """List the files below a folder whose names end in `suffix`: sorted (path relative to the folder, size in bytes).

    Names that begin with a dot or underscore are nobody's data and left out. A folder that is not there has no files.
    """

    def listing() -> dict[str, dict[str, Any]]:
        try:
            found: dict[str, dict[str, Any]] = folder.fs.find(folder.path, detail=True)
        except FileNotFoundError:
            return {}
        return found

    prefix = folder.path.rstrip("/") + "/"
    files = []
    for path, facts in retry_remote(folder, listing).items():
        name = path.removeprefix(prefix)
        if name.endswith(suffix) and path.startswith(prefix) and not any(part[:1] in "._" for part in name.split("/")):
            files.append((name, int(facts.get("size") or 0)))
    return sorted(files)


def put_atomic(place: Location, data: bytes) -> None:
    """Write an object whole or not at all; what stood under the name is replaced.

    Local: a temporary file whose name does not end as data files do, fsync, rename. Elsewhere an upload becomes visible
    when it is complete.
    """
    if not place.is_local:
        retry(lambda: place.fs.pipe_file(place.path, data))
        return
    folder, name = os.path.split(place.path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, place.path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
