"""What becomes of a record whose picture cannot be decoded."""

from __future__ import annotations

import base64
import io
import logging
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from pipelines.records import pictures, values
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


def png(size: tuple[int, int] = (16, 16), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 99).save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_warnings_of_decoding_are_the_rows() -> None:
    (row, _, other) = rows_of(b"x", png(icc_profile=b"broken"))
    assert [warning.partition(":")[0] for warning in row.warnings] == ["profile_unreadable"]
    assert row.warnings == other.warnings and row.warnings is not other.warnings


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF"])
def test_pictures_as_text_are_read(image_format: str) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((16, 16), 99).convert("RGB").save(buffer, image_format)
    data, text = buffer.getvalue(), base64.b64encode(buffer.getvalue()).decode()
    lines = base64.encodebytes(data).decode()
    url_safe = base64.urlsafe_b64encode(data).decode().rstrip("=")
    for form in (text, lines, url_safe, f"data:image/png;base64,{text}", f"DATA:;base64,{quote(text)}", f"data:,{quote(data)}"):
        assert find_coded(form, "image") == data
        assert find_coded({"bytes": None, "path": form}, "given_mask") == data
        assert find_coded(form.encode(), "image") == data == find_coded(data, "image")  # a text in a binary column
    row, *_ = rows_of(text, data)
    assert row.image_path is None and row.status is None


@pytest.mark.parametrize(
    "text", ["a.png", "iVBORw0KGgo", "iVBORw0KGgo/" * 9 + ".png", "data/a.png", "/9j/" + "a" * 99 + ".jpg", "train/" * 20]
)
def test_names_are_no_pictures(text: str) -> None:
    if text.startswith(("iVBORw0KGgo/", "/9j/")):  # begins as a picture does, and is none
        with pytest.raises(RequestError, match="which looks like base64 of a picture: ") as error:
            find_coded(text, "image")
        assert error.value.code == "image_undecodable"
    else:
        assert find_coded(text, "image") == text


def test_a_hugging_face_image_is_its_bytes_or_else_its_path() -> None:
    assert find_coded({"bytes": b"x", "path": "p.png"}, "image") == b"x"
    assert find_coded({"bytes": None, "path": "p.png"}, "image") == "p.png"
    assert find_coded("p.png", "image") == "p.png"
    with pytest.raises(RequestError, match=r"given_mask: got null; allowed: binary, \{bytes, path\} or string"):
        find_coded(None, "given_mask")


def test_pictures_that_stand_in_a_record_have_the_limit_of_those_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    data = buffer.getvalue() + bytes(100)
    monkeypatch.setattr(values, "MAX_IMAGE_BYTES", len(data) - 1)
    for value in (data, {"bytes": data, "path": None}, base64.b64encode(data).decode()):
        with pytest.raises(RequestError, match=f"^given_mask: got {len(data)} bytes; allowed: at most") as refused:
            find_coded(value, "given_mask")
        assert refused.value.code == "mask_too_large"
    monkeypatch.setattr(values, "MAX_IMAGE_BYTES", len(data))
    assert find_coded(data, "image") == data
