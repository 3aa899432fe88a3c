"""The driver's lock: one run at a time writes into an output, and one that was taken over notices before it commits anything."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from pipelines.store.location import Damaged, Location, damaged, put_atomic, read_bytes, retry
from pipelines.store.masking import mask_urls
from pipelines.store.patience import (
    ATTEMPTS,
    LOCK_POLL_S,
    LOCK_RENEW_ATTEMPTS,
    LOCK_RENEW_S,
    LOCK_SETTLE_S,
    LOCK_STALE_S,
    PATIENT_ATTEMPTS,
)
from vimaedit.errors import ConfigError, VimaeditError

logger = logging.getLogger(__name__)

NAMESPACE = "/proc/self/ns/pid"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
LOCK_FILE = "state/lock.json"  # below an output
TIMES = ("started_at", "renewed_at", "editing_since")
COUNTS = ("rows_edited", "limit")
LAST_TIME = 1e11  # s since 1970, far beyond all that are


class LockLost(VimaeditError):
    """Another driver has taken this run over."""


@dataclass(kw_only=True, eq=False)
class Lock:
    """A lock that this process holds.

    `facts` are written with it and may be replaced: `jobs.status` shows them. `on_lost` is called once, from the renewing
    thread, where the lock turns out to be another's: work on is in vain.
    """

    place: Location
    record: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    on_lost: Callable[[], None] | None = None
    _writing: threading.Lock = field(default_factory=threading.Lock)  # nothing is renewed that was released

    @property
    def name(self) -> str:
        """Names this hold of the lock, for logs."""
        return str(self.record["token"])[:12]

    def check(self) -> None:
        """Make sure that the lock is still this process's own; called before every commit.

        Raises: LockLost.
        """
        self._verify(PATIENT_ATTEMPTS)

    def renew(self) -> None:
        """Write the lock again. Raises: LockLost; the storage's errors, hardly tried again: what it says must not be old."""
        with self._writing:
            if self.record["released"]:
                return
            self._verify(ATTEMPTS)
            self.record |= {"renewals": self.record["renewals"] + 1, "renewed_at": time.time(), **self.facts}
            _put(self.place, self.record, attempts=LOCK_RENEW_ATTEMPTS)

    def release(self, **facts: Any) -> None:
        """Say that the lock is free, once; `facts` stand in it. Raises: LockLost."""
        with self._writing:
            if self.record["released"]:
                return
            self._verify(PATIENT_ATTEMPTS)
            self.record |= {"released": True, "renewed_at": time.time(), **self.facts, **facts}
            _put(self.place, self.record)

    def _verify(self, attempts: int) -> None:
        found = read_lock(self.place, attempts=attempts)
        if found is None or found.get("token") != self.record["token"]:
            holder = "nobody; it was removed" if found is None else describe_holder(found)
            raise LockLost(f"{mask_urls(self.place.url)}: held by {holder} now; this run ends here and commits nothing")


_held: set[Lock] = set()  # by this process


def release_held(signal_name: str) -> None:
    """Release what this process holds, and note the signal that ends it: the next driver need not wait. For a signal handler.

    What is still being written then is as good as the next driver's: a unit is the same whoever writes it.
    """
    for lock in list(_held):
        with suppress(LockLost):
            lock.release(interrupted=signal_name)


@contextmanager
def hold_lock(output: Location) -> Iterator[Lock]:
    """Take the output's lock, renew it from a thread, release it at the end.

    Raises: ConfigError naming the holder where another driver is at work.
    """
    place = output / LOCK_FILE
    lock = Lock(place=place, record=_take(place))
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(LOCK_RENEW_S):
            try:
                lock.renew()
            except LockLost as error:
                logger.error("%s", error)
                if lock.on_lost is not None:
                    lock.on_lost()
                return
            except Exception as error:
                logger.warning("lock: not renewed (%s: %s); again in %g s", type(error).__name__, error, LOCK_RENEW_S)

    thread = threading.Thread(target=keep, name="lock", daemon=True)
    thread.start()
    _held.add(lock)
    try:
        yield lock
    finally:
        ended.set()
        thread.join()
        _held.discard(lock)
        try:
            lock.release()
        except LockLost:
            pass  # the next driver's by now; whether that matters, the last check before a commit has said
        except Exception as error:  # what the run came to stands; the next driver waits for the lock to grow stale
            logger.warning("lock: not released (%s: %s)", type(error).__name__, error)


def read_lock(place: Location, *, attempts: int = ATTEMPTS) -> dict[str, Any] | None:
    """Read a lock; None where there is none. One that is being written has no token yet.

    Raises: Damaged for a folder in its place.
    """
    try:
        text = read_bytes(place, attempts=attempts)
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        raise Damaged(f"output: {damaged(place, error, 'a lock, or nothing', 'remove the folder')}") from error
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = {}
    return record if isinstance(record, dict) and _is_lock(record) else {}


def _is_lock(record: dict[str, Any]) -> bool:
    """Whether the numbers of a lock are some; another program's file is as one that is being written."""
    times = [record[name] for name in TIMES if name in record]
    counts = [record.get(name) for name in COUNTS]
    is_whole = all(each is None or (isinstance(each, int) and each >= 0) for each in counts)
    return is_whole and all(isinstance(each, int | float) and 0 <= each < LAST_TIME for each in times)


def describe_holder(record: dict[str, Any]) -> str:
    """Name a lock's holder."""
    return f"process {record.get('pid')} on {record.get('host')}, which began {_utc(record.get('started_at'))}"


def is_free(record: dict[str, Any]) -> bool:
    """Whether a lock may be taken at once: it was released, or its holder is a process of this host that lives no more."""
    if record.get("released"):
        return True
    here = _this_process()
    if any(record.get(name) != here[name] for name in ("host", "process_space")):
        return False
    pid = record.get("pid")
    return isinstance(pid, int) and bool(_process_start(pid) != record.get("process_start"))


def _take(place: Location) -> dict[str, Any]:
    """Write a lock of this process's own, as soon as that is allowed."""
    record = {"token": uuid.uuid4().hex, **_this_process(), "started_at": time.time(), "renewals": 0, "released": False}
    watched: dict[str, Any] | None = None
    since = time.monotonic()
    while True:
        found = read_lock(place)
        if found is None:
            if _create(place, record | {"renewed_at": time.time()}):
                return record
        elif is_free(found) or (watched == found and time.monotonic() - since >= LOCK_STALE_S):
            if not is_free(found):
                logger.warning("lock: taken over from %s; unchanged for %g s", describe_holder(found), LOCK_STALE_S)
            _put(place, record | {"renewed_at": time.time()})
            if _settled(place, record):
                return record
        elif watched is None:
            watched, since = found, time.monotonic()
            logger.info("lock: held by %s; taken over if it is not renewed within %g s", describe_holder(found), LOCK_STALE_S)
        elif found != watched:
            raise ConfigError(
                f"output: got {mask_urls(place.url)}, which is held by {describe_holder(found)}; allowed: one run at a time, "
                "so wait for its end or stop it"
            )
        time.sleep(min(LOCK_POLL_S, LOCK_STALE_S / 4))


def _create(place: Location, record: dict[str, Any]) -> bool:
    """Write the first lock of an output; False where another driver was quicker."""
    if place.is_local:
        os.makedirs(os.path.dirname(place.path), exist_ok=True)
        try:
            with open(place.path, "xb") as stream:
                stream.write(_text(record))
        except FileExistsError:
            return False
        return True
    if has_conditional_put(place):
        try:
            _put(place, record, mode="create")
        except OSError as error:
            if not _is_refusal(error):
                raise
            # Also after an answer that was lost on its way, when the lock is this process's own.
            return _is_own(place, record)
        return True
    logger.info("lock: %s takes no conditional PUT, so the lock is advisory", mask_urls(place.url))
    _put(place, record)
    return _settled(place, record)


def has_conditional_put(place: Location) -> bool:
    """Try whether an object beside `place` is refused where there is one already: several servers accept the wish and ignore it."""
    probe = Location(place.fs, f"{place.path.rpartition('/')[0]}/.probe-{uuid.uuid4().hex}")
    retry(lambda: probe.fs.pipe_file(probe.path, b"1"))
    try:
        retry(lambda: probe.fs.pipe_file(probe.path, b"2", mode="create"))
    except (OSError, NotImplementedError, TypeError) as error:
        return isinstance(error, OSError) and _is_refusal(error)
    finally:
        retry(lambda: probe.fs.rm_file(probe.path))
    return False


def _is_refusal(error: OSError) -> bool:
    """Whether an object was not written since there is one: s3fs knows no better word for 412 than EINVAL."""
    if isinstance(error, FileExistsError):
        return True
    answer = getattr(error.__cause__, "response", None) or {}
    return error.errno == errno.EINVAL and answer.get("ResponseMetadata", {}).get("HTTPStatusCode") == 412


def _settled(place: Location, record: dict[str, Any]) -> bool:
    """Whether a lock that was just written stands after a while."""
    time.sleep(LOCK_SETTLE_S)
    return _is_own(place, record)


def _is_own(place: Location, record: dict[str, Any]) -> bool:
    return bool((read_lock(place) or {}).get("token") == record["token"])


def _put(place: Location, record: dict[str, Any], *, attempts: int = PATIENT_ATTEMPTS, **options: Any) -> None:
    if place.is_local:
        put_atomic(place, _text(record))
    else:
        retry(lambda: place.fs.pipe_file(place.path, _text(record), **options), attempts=attempts)


def _text(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=2).encode()


def _this_process() -> dict[str, Any]:
    """Name this process: machines and containers of one host name have process ids of their own."""
    space = [os.readlink(NAMESPACE)] if os.path.islink(NAMESPACE) else []
    if os.path.isfile(BOOT_ID):
        with open(BOOT_ID, encoding="ascii") as stream:
            space.append(stream.read().strip())
    return {
        "host": platform.node(),
        "process_space": " ".join(space),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
    }


def _process_start(pid: int) -> str | None:
    """Say when a process began, in whatever unit the system has; None where it lives no more."""
    if not os.path.isdir("/proc/self"):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            fields = stream.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _utc(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return "at an unknown time"
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
