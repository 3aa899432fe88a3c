"""What becomes of a record whose picture cannot be decoded."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pipelines.output.config import EditJobConfig
from pipelines.output.context import Row, RunContext
from pipelines.records import pictures as decoding
from pipelines.records.decoder import DecoderDied, DecodingFailed
from pipelines.records.pictures import add_pictures
from tests.contexts import make_context
from vimaedit.models.files import ModelFacts
from vimaedit.types import Status

FACTS = ModelFacts(name="tiny", canvas_size=16, granularity=8, clip_side=7, warning=None)
SECRET_URL = "http://user:SECRET@host/a.png?token=SECRET"


@pytest.fixture
def context() -> RunContext:
    return make_context(EditJobConfig(input="in", output="out"), FACTS)


def rows() -> list[Row]:
    made = [Row(id="x", edit_index=index, input_file="a", input_row=0) for index in range(3)]
    made[1].stop(Status.REJECTED, "record", "null_value", "an earlier reason")
    return made


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
    context: RunContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(record: Any) -> None:
        raise error

    monkeypatch.setattr(decoding, "decoder", refuse)
    found = rows()
    add_pictures(context, found, {"image": b"x"}, b"x")
    for row in (found[0], found[2]):
        assert (row.status, row.error_stage, row.error_type, row.attempts) == (status, "decode", kind, attempts)
        assert row.error_message == message
    assert found[1].error_message == "an earlier reason"


def test_what_is_said_of_a_picture_holds_no_secret(context: RunContext, caplog: pytest.LogCaptureFixture) -> None:
    found = rows()
    with caplog.at_level(logging.DEBUG):
        add_pictures(context, found, {"image": SECRET_URL}, ConnectionError(f"{SECRET_URL}: answered 403"))
    row = found[0]
    assert (row.status, row.error_stage, row.error_type) == (Status.FAILED, "fetch", "ConnectionError")
    assert row.image_path == "http://***@host/a.png?token=***"
    assert "SECRET" not in caplog.text and "answered 403" in caplog.text
    assert row.error_message == "record 'x': image: ConnectionError: http://***@host/a.png?token=*** answered 403"
