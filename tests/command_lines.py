"""Command lines of jobs for tests."""

from __future__ import annotations

from collections.abc import Sequence


def instead(words: Sequence[str], *others: str) -> list[str]:
    """Return the words with others in place of those of the same key: a key stands once on a command line."""
    keys = {word.partition("=")[0] for word in others}
    return [*(word for word in words if word.partition("=")[0] not in keys), *others]
