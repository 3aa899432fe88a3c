"""Decode pictures in a process beside: one that crashes its decoder, eats memory or never ends costs its own record only."""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe

from pipelines.store.patience import DECODER_CPU_S, DECODER_STOP_S, DECODER_TRIES
from vimaedit.decoding import decode_whole
from vimaedit.errors import RequestError, VimaeditError
from vimaedit.images import CanvasSpec, FittedPicture, fit_picture
from vimaedit.mask_decoding import decode_whole_mask, turn_mask

ROOM_BYTES = 1024**3  # of memory beside what the process begins with, ...
BYTES_PER_PIXEL = 24  # ... and for each pixel that is allowed: several copies of four channels while colours are converted
READY = "ready"
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from pipelines.records.decoder import serve; serve(int(sys.argv[2]))"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class CodedRecord:
    """A record's coded picture and mask (None: there is none), and what they are brought to."""

    image: bytes
    mask: bytes | None
    min_side_px: int
    max_pixels: int
    canvas: CanvasSpec
    clip_side: int


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedRecord:
    """A picture on the canvas with its mask, what is wrong with the mask where nothing else is, and what to know of both."""

    picture: FittedPicture
    bad_mask: RequestError | None = None
    warnings: tuple[str, ...] = ()


class DecoderDied(VimaeditError):
    """The process died on this picture every time; `tries` says how often."""

    def __init__(self, tries: int, cause: str) -> None:
        super().__init__(f"the decoding process died {tries} times on this picture ({cause})")
        self.tries = tries


class DecodingFailed(VimaeditError):
    """An error that says nothing certain about the picture; `type` is its name."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.type = kind

    def __reduce__(self) -> tuple[object, ...]:
        return DecodingFailed, (self.type, str(self))


class _Died(Exception):
    """The process died once."""


class Decoder:
    """A process that decodes one record after the other. It is started when it is needed, and anew when it has died."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: Connection | None = None

    def __call__(self, record: CodedRecord) -> DecodedRecord:
        """Decode a record.

        Raises: RequestError for a bad picture, `image_too_slow` and `image_too_costly` among them; DecoderDied;
        DecodingFailed; RuntimeError where no process can be started.
        """
        with self.lock:
            for tried in range(1, DECODER_TRIES + 1):
                try:
                    reply = self._ask(record)
                    break
                except _Died as death:
                    if tried == DECODER_TRIES:
                        raise DecoderDied(DECODER_TRIES, str(death)) from death
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self) -> None:
        """End the process, if there is one: it leaves when nobody can ask it any more."""
        if self.connection is not None:
            self.connection.close()
        if self.process is not None:
            try:
                self.process.wait(DECODER_STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = self.connection = None

    def _ask(self, record: CodedRecord) -> DecodedRecord | Exception:
        connection = self.connection or self._start()
        try:
            connection.send((record, DECODER_CPU_S))
            reply: DecodedRecord | Exception = connection.recv()
        except (EOFError, OSError) as error:
            code = self._end_code()
            if code == -signal.SIGXCPU:
                got, allowed = f"more than {DECODER_CPU_S} s of CPU to decode it", "a picture that decodes faster"
                return RequestError("image_too_slow", field="image", got=got, allowed=allowed)
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            raise _Died(f"it ended {how}") from error
        return reply

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        command = [sys.executable, "-c", PROGRAM, json.dumps(sys.path), str(theirs.fileno())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=2, pass_fds=[theirs.fileno()]
        )
        self.connection = ours
        theirs.close()
        try:
            assert ours.recv() == READY
        except (EOFError, OSError) as error:
            code = self._end_code()
            raise RuntimeError(
                f"no decoding process could start: it ended with exit code {code}, see its node's log"
            ) from error
        return ours

    def _end_code(self) -> int:
        """Forget a process that has ended by itself, and give its exit code."""
        process = self.process
        assert process is not None
        self.close()
        return process.returncode


shared_decoder = Decoder()  # of this process
atexit.register(shared_decoder.close)


def decode_record(record: CodedRecord) -> DecodedRecord:
    """Decode a record's picture and mask in this process and bring them to the canvas.

    Raises: RequestError for a bad picture.
    """
    original = decode_whole(record.image, min_side_px=record.min_side_px, max_pixels=record.max_pixels)
    pixels, warnings = original.pixels, original.warnings
    mask = bad_mask = None
    if record.mask is not None:
        try:
            given = decode_whole_mask(record.mask, max_pixels=record.max_pixels)
            mask, turned = turn_mask(given.pixels, (pixels.shape[1], pixels.shape[0]), original.orientation)
            warnings = (*warnings, *given.warnings, *turned)
        except RequestError as error:
            bad_mask = error
    picture = fit_picture(pixels, mask, record.canvas, record.clip_side, original.orientation)
    picture = replace(picture, fitted=replace(picture.fitted, is_generated=original.is_generated))
    return DecodedRecord(picture=picture, bad_mask=bad_mask, warnings=warnings)


def serve(descriptor: int) -> None:
    """Decode what comes in over a connection until its other end is closed; the body of the process beside."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to every process; this one leaves with its parent
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(descriptor)
    connection.send(READY)
    begun_with = _mapped_bytes()
    while True:
        try:
            record, cpu_seconds = connection.recv()
        except (EOFError, OSError):
            return
        room = ROOM_BYTES + BYTES_PER_PIXEL * record.max_pixels + 2 * len(record.image) + 2 * len(record.mask or b"")
        _limit(resource.RLIMIT_AS, begun_with + room)
        _limit(resource.RLIMIT_CPU, int(_used_cpu_seconds()) + 1 + cpu_seconds)
        connection.send(_reply(record, room))


def _reply(record: CodedRecord, room: int) -> DecodedRecord | Exception:
    try:
        return decode_record(record)
    except RequestError as error:
        return error
    except MemoryError:
        got, allowed = (
            f"a picture that takes more than {room >> 20} MiB to decode",
            "one that takes less, or a larger max_pixels",
        )
        return RequestError("image_too_costly", field="image", got=got, allowed=allowed)
    except Exception as error:
        return DecodingFailed(type(error).__name__, str(error))


def _limit(kind: int, soft: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _mapped_bytes() -> int:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[0]) * resource.getpagesize()


def _used_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
