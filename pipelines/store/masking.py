"""Credentials in URLs: nothing that is written, logged or shown may carry them."""

from __future__ import annotations

import re

# The second form is for passwords that hold signs a URL would have to quote; digits up to a path are a port, and no password.
# Bounded lengths, here and of names, keep the search linear.
USER_INFO = re.compile(r"(?<=//)(?:[^/?#\s'\"]+|[^/?#\s'\":@]{1,256}:(?!\d*[/?#'\"\s])\S{0,256})(?=@)")
SECRET_NAME = r"[?&;#][\w.-]{0,64}(?:signature|credential|token|secret|key|pass|pwd|sig|auth)[\w.-]{0,64}="
# Queries stand without their host too, in a client's error texts. A quote ends a value only where a text could go on behind it.
SECRET_PARAMETER = re.compile(rf"({SECRET_NAME})(?:[^&\s'\"]|['\"](?=[^\s;,:.)\]}}'\"]))+", re.IGNORECASE)
WHOLE_USER_INFO = re.compile(r"[^/?#]*|[^/?#:@]+:(?!\d*[/?#]).*", re.DOTALL)
WHOLE_PARAMETER = re.compile(f"({SECRET_NAME})[^&]+", re.IGNORECASE)


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
