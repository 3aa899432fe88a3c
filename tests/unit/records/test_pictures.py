"""What becomes of a record whose picture cannot be decoded."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pipelines.records import pictures
from pipelines.records.decoder import DecoderDied, DecodingFailed
from pipelines.records.parse import parse_record
from pipelines.records.pictures import decode_picture, find_coded
from pipelines.records.row import Row
from tests.contexts import make_rules
from vimaedit.errors import RequestError
from vimaedit.types import Status

SECRET_URL = "http://user:SECRET@host/a.png?token=SECRET"


def rows_of(image: Any, fetched: bytes | Exception) -> list[Row]:
    """Return the rows of a record of three edits, of which the second has no prompt."""
    rules, record = make_rules(), {"id": "x", "image": image, "source_prompt": "s", "target_prompt": ["p", None, "q"]}
    place = {"input_file": "a", "input_row": 0, "first_edit": 0, "count": 3}
    return parse_record(rules, record, decode_picture(rules, record, fetched), blends_per_target=False, **place)


@pytest.mark.parametrize(
    ("error", "status", "kind", "message", "attempts"),
    [
        (
            DecoderDied(2, "it ended by signal SIGSEGV"),
            Status.QUARANTINED,
            "process_died",
            "record 'x': the decoding process died 2 times on this picture (it ended by signal SIGSEGV)",
            2,
        ),
        (
            DecodingFailed("LookupError", "no idea of s3://user:SECRET@b/a"),
            Status.FAILED,
            "LookupError",
            "record 'x': image: LookupError: no idea of s3://***@b/a",
            0,
        ),
    ],
)
def test_what_the_decoder_cannot_do_becomes_the_rows(
    error: Exception,
    status: Status,
    kind: str,
    message: str,
    attempts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(record: Any) -> None:
        raise error

    monkeypatch.setattr(pictures, "shared_decoder", refuse)
    found = rows_of(b"x", b"x")
    for row in (found[0], found[2]):
        assert (row.status, row.result.error_stage, row.result.error_type, row.attempts) == (status, "decode", kind, attempts)
        assert row.result.message == message
    assert (found[1].result.error_stage, found[1].result.error_type) == ("record", "null_value")


def test_what_is_said_of_a_picture_holds_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        found = rows_of(SECRET_URL, ConnectionError(f"{SECRET_URL}: answered 403"))
    row = found[0]
    assert (row.status, row.result.error_stage, row.result.error_type) == (Status.FAILED, "fetch", "ConnectionError")
    assert row.image_path == "http://***@host/a.png?token=***"
    assert "SECRET" not in caplog.text and "answered 403" in caplog.text
    assert row.result.message == "record 'x': image: ConnectionError: http://***@host/a.png?token=*** answered 403"


def test_a_hugging_face_image_is_its_bytes_or_else_its_path() -> None:
    assert find_coded({"bytes": b"x", "path": "p.png"}, "image") == b"x"
    assert find_coded({"bytes": None, "path": "p.png"}, "image") == "p.png"
    assert find_coded("p.png", "image") == "p.png"
    with pytest.raises(RequestError, match=r"given_mask: got null; allowed: binary, \{bytes, path\} or string"):
        find_coded(None, "given_mask")
