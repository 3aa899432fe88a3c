"""Marks of edited pictures: written into every format, read back, and known where a drawn picture is edited again."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.status import main
from vimaedit.decoding import decode_whole
from vimaedit.images import encode_image
from vimaedit.marks import COMPOSITE, GENERATED, MAX_BYTES, make_mark, read_mark

CODINGS = [f'<?xml version="1.0" encoding="{name}"?><a/>'.encode() for name in ("none", "shift_jis", "idna")]
PIXELS = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_a_mark_is_read_back_and_changes_no_pixel(image_format: str) -> None:
    facts = {"run": "0f", "row": 'a "b" <c>&.parquet#7/0', "model": "ü"}
    marked = encode_image(PIXELS, image_format, make_mark(COMPOSITE, **facts))
    assert read_mark(marked) == {"DigitalSourceType": COMPOSITE, **facts}
    plain = encode_image(PIXELS, image_format)
    assert read_mark(plain) == {} and len(plain) < len(marked)
    np.testing.assert_array_equal(*(decode_whole(data).pixels for data in (marked, plain)))
    assert not decode_whole(marked).is_generated
    assert decode_whole(encode_image(PIXELS, image_format, make_mark(GENERATED))).is_generated


@pytest.mark.parametrize("packet", [b"", b"<x", b"\xff\xfe", b"<a/>", b"<a>" + b" " * MAX_BYTES + b"</a>", *CODINGS])
def test_other_packets_are_no_mark(packet: bytes) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "webp", lossless=True, xmp=packet)
    assert read_mark(buffer.getvalue()) == {}


def test_the_job_tells_a_mark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_image(PIXELS, "png", make_mark(COMPOSITE, run="0f")))
    assert main([f"image={path}"]) == 0
    assert capsys.readouterr().out == f"DigitalSourceType: {COMPOSITE}\nrun: 0f\n"
    path.write_bytes(encode_image(PIXELS, "png"))
    assert main([f"image={path}"]) == 0 and capsys.readouterr().out == "no mark of an edited picture\n"
    path.write_bytes(b"text")
    assert main([f"image={path}"]) == 2 and "cannot identify image file" in capsys.readouterr().err
    assert main([f"image={tmp_path / 'b.png'}"]) == 2 and "there is no such file" in capsys.readouterr().err
    assert main([f"image={path}", "output=out"]) == 2 and "allowed: one of them" in capsys.readouterr().err
    assert main([]) == 2


def test_what_somebody_wrote_into_a_mark_forges_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = make_mark(COMPOSITE, run="a\nmodel: forged", row="\x9b2J\u202e")
    (tmp_path / "a.png").write_bytes(encode_image(PIXELS, "png", mark))
    assert main([f"image={tmp_path / 'a.png'}"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [r"run: a\nmodel: forged", r"row: \x9b2J\u202e"]
