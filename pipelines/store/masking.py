"""What may be written, logged and shown of a text: no credentials, no control characters, no more than is of use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vimaedit.errors import ConfigError

# The second form is for passwords that hold signs a URL would have to quote; digits up to a path are a port, and no password.
# Bounded lengths, here and of names, keep the search linear.
USER_INFO = re.compile(r"(?<=//)(?:[^/?#\s'\"]+|[^/?#\s'\":@]{1,256}:(?!\d*[/?#'\"\s])\S{0,256})(?=@)")
SECRET_WORD = r"[\w.-]{0,64}(?:signature|credential|token|secret|session|bearer|jwt|key|pass|pwd|sig|auth)[\w.-]{0,64}"
# These are parts of ordinary words too.
SECRET_NAME = rf"[?&;#](?:{SECRET_WORD}|(?:[\w.-]{{0,64}}[_.-])?(?:code|sas))="
# Queries stand without their host too, in a client's error texts. A quote ends a value only where a text could go on behind it.
SECRET_PARAMETER = re.compile(rf"({SECRET_NAME})(?:[^&\s'\"]|['\"](?=[^\s;,:.)\]}}'\"]))+", re.IGNORECASE)
WHOLE_USER_INFO = re.compile(r"[^/?#]*|[^/?#:@]+:(?!\d*[/?#]).*", re.DOTALL)
WHOLE_PARAMETER = re.compile(f"({SECRET_NAME})[^&]+", re.IGNORECASE)
# Before the first slash, where a bucket's name has no colon; secrets may hold slashes.
STORE_CREDENTIALS = re.compile(
    r"(?:[\w+.-]+::)*(?:s3a?|gc?s|oss|abfss?|az|adl)://(?!arn:)[^/?#:@]*:.*@", re.DOTALL | re.IGNORECASE
)
QUOTED_CHARACTERS = 200  # of a value that an error's text quotes
QUOTED = re.compile(rf"""(['"])((?:(?!\1).){{{QUOTED_CHARACTERS}}})(?:(?!\1).)+\1""", re.DOTALL)
# What moves a terminal's cursor, ends a line, turns the reading direction around, or cannot be encoded.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def mask_urls(text: str) -> str:
    """Replace user names with passwords, tokens and signatures of every URL in a text by `***`."""
    return SECRET_PARAMETER.sub(r"\1***", USER_INFO.sub("***", text))


def mask_url(url: str) -> str:
    """Mask the credentials of one URL. Where it ends is known, so that blanks and quotes in them end nothing."""
    scheme, slashes, rest = url.partition("//")
    user, at, place = rest.rpartition("@")
    if at and WHOLE_USER_INFO.fullmatch(user):
        url = f"{scheme}{slashes}***@{place}"
    return mask_urls(WHOLE_PARAMETER.sub(r"\1***", url))


def refuse_credentials(url: str) -> None:
    """Check that the URL of an object store carries no credentials, which clients would take for the bucket's name.

    Raises: ConfigError without them.
    """
    if STORE_CREDENTIALS.match(url):
        raise ConfigError(
            f"got {mask_url(url)!r}, which holds credentials; allowed: a URL without them (clients take them from the environment or "
            "their own files)"
        )


def printable(text: str) -> str:
    """Return the text with control characters as Python writes them: nothing in it can forge a line or steer a terminal."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    """As `printable` for a text of several lines; those behind the first are indented, so that none looks like another text's."""
    return "\n  ".join(printable(line) for line in text.split("\n"))


def cut(text: str, characters: int) -> str:
    """Return the text, or its beginning and dots where it is longer than so many characters."""
    return text if len(text) <= characters else f"{text[: max(0, characters - 3)]}..."


def cut_quotes(text: str) -> str:
    """Cut every value that an error's text quotes, so that what was got and what is allowed both stay readable."""
    return QUOTED.sub(r"\1\2...\1", text)


def without_secrets(value: Any) -> Any:
    """Mask the credentials of all URLs among nested lists and mappings of plain values."""
    if isinstance(value, str):
        return mask_urls(value)
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return value
