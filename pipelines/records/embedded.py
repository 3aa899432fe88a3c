"""Pictures that stand in a record as text: base64, as many programs export binary columns, and data URIs."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from vimaedit.errors import RequestError, shown

DATA = "data:"
MIN_CHARACTERS = 64  # no picture is shorter, and hardly a path of that length looks like one
HEAD_CHARACTERS = 24
ALPHABET = re.compile(r"[A-Za-z0-9+/_-]+")
# How files of the readable formats begin.
SIGNATURES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*|\0\0\0\x0cjP  |....ftyp|\xff\x4f\xff\x51|P[1-6]\s",
    re.DOTALL,
)


def is_embedded(text: str) -> bool:
    """Whether a text holds a picture itself instead of naming one: by its scheme, or by what its first characters decode to."""
    if text[: len(DATA)].lower() == DATA:
        return True
    head = "".join(text[: 2 * HEAD_CHARACTERS].split())[:HEAD_CHARACTERS]
    if len(text) < MIN_CHARACTERS or len(head) < HEAD_CHARACTERS or not ALPHABET.fullmatch(head):
        return False
    return SIGNATURES.match(_decoded(head)) is not None


def as_text(data: bytes) -> str | None:
    """Return bytes that are a text which holds a picture itself, as programs write it that know no binary columns; None for others."""
    if SIGNATURES.match(data) or not data[: 2 * HEAD_CHARACTERS].isascii():
        return None
    text = data.decode("ascii", errors="replace")
    return text if is_embedded(text) else None


def read_embedded(text: str, field: str) -> bytes:
    """Return the bytes that a text holds.

    Raises: RequestError where they are cut or broken.
    """
    try:
        if text[: len(DATA)].lower() != DATA:
            return _decoded(text)
        header, comma, body = text.partition(",")
        if not comma:
            raise ValueError("a data URI without a comma")
        coded = unquote_to_bytes(body)
        return _decoded(coded.decode("ascii")) if header.lower().endswith(";base64") else coded
    except ValueError as error:  # binascii's and those of codecs are among them
        got = f"{shown(text)}, which looks like base64 of a picture: {error}"
        raise RequestError(f"{field.rpartition('_')[2]}_undecodable", field=field, got=got, allowed="whole base64") from error


def _decoded(text: str) -> bytes:
    """Decode base64 of either alphabet, in lines or in one, padded or not.

    Raises: ValueError.
    """
    letters = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
