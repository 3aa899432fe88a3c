"""An HTTP proxy that spoils what passes: errors, slow and lost answers, resets, cut bodies, an ignored `If-None-Match`.

    python -m tests.faults.proxy --upstream 127.0.0.1:5000 --seed 7 --rate 0.2 --kinds 500,503,slow,reset,lost,cut

Stands before an object store; it prints the address it listens at. Whether a request is spoilt follows from the seed, the request
and how often it was made before, not from the order in which requests arrive. `POST /faults` with the rules as JSON replaces them
while it runs, `GET /faults` counts what was done.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

CONTROL = "/faults"
ERRORS = {"500": ("Internal Server Error", "InternalError"), "503": ("Slow Down", "SlowDown")}
# reset: before the request is passed on; lost: it is, and its answer is not; cut: half of the answer's body
KINDS = (*ERRORS, "slow", "reset", "lost", "cut")
HEAD_LIMIT = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What to spoil: a share `rate` of the requests by `methods`, and each request's `first` attempts whatever the rate.

    Only paths that hold `path` are spoilt, and everything answers 503 until the time `down_until` (as `time.time()`).
    `conditional` of False leaves out `If-None-Match`, as servers do that do not know it.
    """

    seed: int = 0
    rate: float = 0.0
    first: int = 0
    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    methods: list[str] = field(default_factory=lambda: ["GET", "HEAD", "PUT"])
    path: str = ""
    slow_s: float = 2.0
    down_until: float = 0.0
    conditional: bool = True

    def fault(self, method: str, target: str, times_before: int) -> str | None:
        """Choose what to do to a request that was made so often before; None: pass it on."""
        if time.time() < self.down_until:
            return "503"
        if method not in self.methods or self.path not in target or not self.kinds:
            return None
        text = f"{self.seed} {method} {target} {times_before}"
        number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
        kind = self.kinds[number % len(self.kinds)]
        return kind if times_before < self.first or (number >> 32) / 2**32 < self.rate else None


@dataclass(frozen=True, kw_only=True)
class _Request:
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def bytes(self, *, conditional: bool) -> bytes:
        """The request as it is passed on: whole, on a connection of its own."""
        dropped = {"connection", "expect"} | (set() if conditional else {"if-none-match"})
        lines = [f"{name}: {value}" for name, value in self.headers if name.lower() not in dropped]
        return (
            "\r\n".join([f"{self.method} {self.target} HTTP/1.1", *lines, "Connection: close", "", ""]).encode("latin-1")
            + self.body
        )


class Proxy:
    """Serves one address and passes on to another."""

    def __init__(self, host: str, port: int, rules: Rules) -> None:
        self.upstream = host, port
        self.rules = rules
        self.times: Counter[tuple[str, str]] = Counter()
        self.done: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close the connection."""
        try:
            request = await _read_request(reader, writer)
            if request is None:
                return
            if request.target == CONTROL:
                writer.write(self._control(request))
            else:
                await self._answer(request, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            writer.close()

    def _control(self, request: _Request) -> bytes:
        if request.method == "POST":
            self.rules = Rules(**json.loads(request.body))
            self.times.clear()
        return _answer("200 OK", json.dumps(self.done).encode())

    async def _answer(self, request: _Request, writer: asyncio.StreamWriter) -> None:
        key = request.method, request.target
        fault = self.rules.fault(*key, self.times[key])
        self.times[key] += 1
        self.done[f"{request.method} {fault or 'passed'}"] += 1
        if fault in ERRORS:
            text, code = ERRORS[str(fault)]
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
            writer.write(_answer(f"{fault} {text}", b"" if request.method == "HEAD" else body))
            return
        if fault == "reset":
            _reset(writer)
            return
        if fault == "slow":
            await asyncio.sleep(self.rules.slow_s)
        upstream_reader, upstream_writer = await asyncio.open_connection(*self.upstream)
        try:
            upstream_writer.write(request.bytes(conditional=self.rules.conditional))
            await upstream_writer.drain()
            answer = await upstream_reader.read(-1)
        finally:
            upstream_writer.close()
        if fault == "lost":
            _reset(writer)
        elif fault == "cut":
            head, gap, body = answer.partition(b"\r\n\r\n")
            writer.write(head + gap + body[: len(body) // 2])
        else:
            writer.write(answer)


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Request | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    named = {name.lower(): value for name, value in headers}
    if named.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    if "chunked" in named.get("transfer-encoding", "").lower():
        body = await _read_chunks(reader)
    else:
        body = await reader.readexactly(int(named.get("content-length", "0")))
    return _Request(method=method, target=target, headers=headers, body=body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """Read a body in chunks, as it is, trailers and all."""
    pieces = []
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        pieces += [line, await reader.readexactly(size + 2) if size else b""]
        if not size:
            while (trailer := await reader.readuntil(b"\r\n")) != b"\r\n":
                pieces.append(trailer)
            return b"".join([*pieces, b"\r\n"])


def _answer(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a crash does: the peer sees a reset, not an end."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _run(proxy: Proxy, port: int) -> None:
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", port, limit=HEAD_LIMIT)
    host, bound = server.sockets[0].getsockname()
    print(f"http://{host}:{bound}", flush=True)
    async with server:
        await server.serve_forever()


def main(words: Sequence[str] | None = None) -> int:
    """Serve until the process is ended."""
    defaults = asdict(Rules())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", required=True, help="HOST:PORT of the server to pass on to")
    parser.add_argument("--port", type=int, default=0, help="to listen at; 0: any that is free")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.0, help="share of the requests that are spoilt")
    parser.add_argument("--first", type=int, default=0, help="spoil each request so many times, then no more")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--methods", default=",".join(defaults["methods"]))
    parser.add_argument("--slow-s", type=float, default=defaults["slow_s"])
    parser.add_argument("--no-conditional", action="store_true", help="ignore If-None-Match")
    given = parser.parse_args(words)
    host, _, port = given.upstream.rpartition(":")
    rules = Rules(
        seed=given.seed,
        rate=given.rate,
        first=given.first,
        kinds=given.kinds.split(","),
        methods=given.methods.split(","),
        slow_s=given.slow_s,
        conditional=not given.no_conditional,
    )
    try:
        asyncio.run(_run(Proxy(host, int(port), rules), given.port))
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
