"""Decoding beside: what a picture does to its process costs its own record only."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.records import decoder as module
from pipelines.records.decoder import CodedRecord, DecodedRecord, Decoder, DecoderDied, DecodingFailed, decode_record
from vimaedit.errors import RequestError
from vimaedit.images import CanvasSpec

# Bytes at a picture's end that make the process do to itself what a hostile picture would.
HOOK = """
import importlib.abc, importlib.machinery, os, signal, sys

class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "vimaedit.decoding":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            decode = module.decode_whole
            def wrapped(data, **options):
                act(data[-4:])
                return decode(data, **options)
            module.decode_whole = wrapped
        spec.loader.exec_module = exec_module
        return spec

def act(end):
    if end in (b"SEGV", b"ONCE"):
        with open(os.environ["DEATHS"], "a+") as stream:
            stream.seek(0)
            first = not stream.read()
            stream.write("death\\n")
        if end == b"SEGV" or first:
            os.kill(os.getpid(), signal.SIGSEGV)
    elif end == b"EXIT":
        os._exit(7)
    elif end == b"LOOP":
        while True:
            pass
    elif end == b"MEMO":
        bytearray(1 << 42)
    elif end == b"ERRO":
        raise LookupError("no idea")

sys.meta_path.insert(0, Hook())
"""


def picture(number: int = 9, end: bytes = b"", size: tuple[int, int] = (23, 19)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (number, 2 * number, 0)).save(buffer, "PNG")
    return buffer.getvalue() + end


def record(image: bytes, **changes: Any) -> CodedRecord:
    options: dict[str, Any] = {"mask": None, "min_side_px": 11, "max_pixels": 10_000, "clip_side": 7}
    options["canvas"] = CanvasSpec(fit="crop", size=16, granularity=8)
    return CodedRecord(image=image, **{**options, **changes})


@pytest.fixture
def decoder(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    """Give a decoder whose process has the hook."""
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{repository}")
    monkeypatch.setenv("DEATHS", str(tmp_path / "deaths"))
    decoder = Decoder()
    yield decoder
    decoder.close()


def equal(left: DecodedRecord, right: DecodedRecord) -> bool:
    a, b = left.picture, right.picture
    pairs = [(a.clip_image, b.clip_image), (a.mask, b.mask)]
    pairs += [(getattr(a.fitted, name), getattr(b.fitted, name)) for name in ("image", "size", "crop_box")]
    return all(np.array_equal(own, other) for own, other in pairs)


def test_records_are_decoded_as_in_this_process(decoder: Decoder) -> None:
    for number in (3, 40):
        mask = picture(0, size=(46, 38))
        asked = record(picture(number), mask=mask)
        assert equal(decoder(asked), decode_record(asked))
    maskless = decoder(record(picture(), mask=b"no mask"))
    assert maskless.picture.mask is None and maskless.bad_mask is not None and maskless.bad_mask.field == "given_mask"
    process = decoder.process
    with pytest.raises(RequestError, match="image: got 4 bytes: no picture format known here; allowed: a whole AVIF"):
        decoder(record(b"none"))
    with pytest.raises(DecodingFailed, match="no idea") as caught:
        decoder(record(picture(end=b"ERRO")))
    assert caught.value.type == "LookupError"
    assert decoder.process is process


def test_what_is_to_be_known_of_a_picture_and_its_mask_comes_with_them(decoder: Decoder) -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (23, 19), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:], icc_profile=b"broken")
    decoded = decoder(record(buffer.getvalue(), mask=picture(9, size=(23, 19))))
    codes = [warning.partition(":")[0] for warning in decoded.warnings]
    assert codes == ["first_frame_only", "profile_unreadable", "mask_covers_everything"]
    assert decoded.picture.mask is not None and decoded.picture.mask.all()
    other = decoder(record(picture(), mask=picture(9, size=(19, 23))))
    assert other.picture.mask is None and other.bad_mask is not None and other.bad_mask.code == "mask_aspect"


def test_a_mask_is_turned_with_its_picture(decoder: Decoder) -> None:
    stored, shape, exif = np.zeros((16, 32, 3), np.uint8), np.zeros((16, 32), np.uint8), Image.Exif()
    stored[4:9, 3:20] = shape[4:9, 3:20] = 255
    exif[0x0112] = 6
    coded = []
    for array, options in ((stored, {"exif": exif}), (shape, {})):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG", **options)
        coded.append(buffer.getvalue())
    decoded = decoder(record(coded[0], mask=coded[1], canvas=CanvasSpec(fit="keep", size=32, granularity=8)))
    assert decoded.picture.fitted.size == (16, 32) and decoded.picture.fitted.orientation == 6
    assert [warning.partition(":")[0] for warning in decoded.warnings] == ["mask_turned"]
    assert decoded.picture.mask is not None
    assert (decoded.picture.mask == (decoded.picture.fitted.image[..., 0] > 127)).mean() > 0.97


def test_a_picture_that_kills_its_process_is_tried_again_and_harms_no_other(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(DecoderDied, match=r"the decoding process died 2 times on this picture \(it ended by signal SIGSEGV\)"):
        decoder(record(picture(end=b"SEGV")))
    assert (tmp_path / "deaths").read_text() == "death\n" * 2
    (tmp_path / "deaths").unlink()
    assert decoder(record(picture(end=b"ONCE"))).picture.fitted.size == (23, 19)
    with pytest.raises(DecoderDied, match=r"\(it ended with exit code 7\)"):
        decoder(record(picture(end=b"EXIT")))
    assert decoder(record(picture())).picture.fitted.size == (23, 19)


def test_a_process_killed_between_pictures_is_replaced(decoder: Decoder) -> None:
    decoder(record(picture()))
    assert decoder.process is not None
    os.kill(decoder.process.pid, signal.SIGKILL)
    assert decoder(record(picture())).picture.fitted.size == (23, 19)


def test_time_and_memory_end(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DECODER_CPU_S", 1)
    started = time.monotonic()
    with pytest.raises(RequestError, match="image: got more than 1 s of CPU to decode it; allowed: a picture that decodes"):
        decoder(record(picture(end=b"LOOP")))
    assert time.monotonic() - started < 60
    with pytest.raises(RequestError, match=r"image: got a picture that takes more than 1024 MiB to decode; allowed: one that"):
        decoder(record(picture(end=b"MEMO")))
    assert decoder(record(picture())).picture.fitted.size == (23, 19)


def test_the_process_ends_with_its_parent(decoder: Decoder) -> None:
    decoder(record(picture()))
    process = decoder.process
    assert process is not None and process.poll() is None
    decoder.close()
    assert process.returncode == 0


def test_a_process_that_cannot_start_is_no_bad_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROGRAM", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="no decoding process could start: it ended with exit code 3"):
        Decoder()(record(picture()))
