"""Credentials in URLs: nothing that is written, logged or shown may carry them."""

from __future__ import annotations

import re

USER_INFO = re.compile(r"(?<=://)[^/?#\s'\"]+(?=@)")
# A name of bounded length keeps the search linear. Queries stand without their host too, in a client's error texts.
SECRET_PARAMETER = re.compile(
    r"([?&;#][\w.-]{0,64}(?:signature|credential|token|secret|key|pass|pwd|sig|auth)[\w.-]{0,64}=)[^&\s'\"]+", re.IGNORECASE
)


def mask_urls(text: str) -> str:
    """Replace user names with passwords, tokens and signatures of every URL in a text by `***`."""
    return SECRET_PARAMETER.sub(r"\1***", USER_INFO.sub("***", text))
