"""Credentials in URLs: nothing that is written, logged or shown may carry them."""

from __future__ import annotations

import re

USER_INFO = re.compile(r"(?<=://)[^/@\s'\"]+(?=@)")
SECRET_PARAMETER = re.compile(
    r"([?&][\w.-]*(?:signature|credential|token|secret|key|password|passwd|sig|auth)[\w.-]*=)[^&\s'\"]+", re.IGNORECASE
)


def mask_urls(text: str) -> str:
    """Replace user names with passwords, tokens and signatures of every URL in a text by `***`."""
    if "://" not in text:
        return text
    return SECRET_PARAMETER.sub(r"\1***", USER_INFO.sub("***", text))
