"""The mark of a complete output: written last, taken away before anything is done that it does not cover."""

from __future__ import annotations

from pipelines.store.location import Location, exists, put_atomic, retry

MARK = "_SUCCESS"


def write_success(output: Location) -> None:
    """Mark the output complete."""
    put_atomic(output / MARK, b"")


def is_complete(output: Location) -> bool:
    """Whether the output is marked complete."""
    return exists(output / MARK)


def withdraw_success(output: Location) -> None:
    """Take the mark away, before anything is done that it does not cover."""
    place = output / MARK
    if is_complete(output):
        retry(lambda: place.fs.rm_file(place.path))
