"""Two servers on this machine: one that answers garbage, and one that nothing may ask."""

from __future__ import annotations

import random
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from tests.fuzz.world import CANARY_COLOUR, CANARY_TEXT, World, coded


class _Garbage(socketserver.StreamRequestHandler):
    """Answers from the seed and the path: broken status lines, headers, lengths and pieces, sometimes a picture."""

    server: Any
    timeout = 5

    def handle(self) -> None:
        path = self.rfile.readline(70_000).decode("latin-1").split(" ")[1]
        while self.rfile.readline(70_000) not in (b"\r\n", b"\n", b""):
            pass
        if path.startswith("/to/"):
            location = path.removeprefix("/to/").encode("latin-1")
            self.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n")
            return
        chance = random.Random(path)
        if chance.random() < 0.4:  # a sound answer with any content
            content = chance.choice((self.server.picture, self.server.picture[:40], b"", chance.randbytes(500)))
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
            return
        status = chance.choice(
            (b"200 OK", b"200", b"201 Made", b"204 Empty", b"206 Part", b"304 Same", b"100 Go on", b"404 No")
        )
        status = chance.choice((status, b"200 OK", b"200 OK", b"-1 x", b"999 x", b"200\0 OK", b"302 Found", b"500 Broken"))
        picture = self.server.picture
        body = chance.choice((picture, picture[:40], b"", chance.randbytes(500), b"<html>token=1</html>"))
        headers = [b"Content-Type: image/png", b"Content-Length: %d" % chance.choice((len(body), 0, 7, 10**9, -5))]
        odd = (b"no colon", b"X: " + b"x" * 70_000, b"\0: \xff", b": x", b"Content-Length: many", b"Transfer-Encoding: chunked")
        odd += (b"Content-Encoding: gzip", b"Set-Cookie: \x80\r\n folded", b"Location: http://[::1")
        headers += [chance.choice(odd) for _ in range(chance.choice((0, 0, 1, 2)))] + [
            b"X-%d: 1" % n for n in range(chance.choice((0, 200)))
        ]
        start = chance.choice(
            (b"HTTP/1.1 ", b"HTTP/1.1 ", b"HTTP/1.1 ", b"HTTP/0.9 ", b"HTTP/9 ", b"", b"\r\n", chance.randbytes(9))
        )
        self.wfile.write(start + status + b"\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body)


class _Forbidden(socketserver.StreamRequestHandler):
    """Notes that it was asked, and would give away the canary."""

    server: Any

    def handle(self) -> None:
        self.server.asked.append(self.rfile.readline(1000))
        body = coded(Image.new("RGB", (64, 64), CANARY_COLOUR)) + CANARY_TEXT
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, handler: type[socketserver.StreamRequestHandler], picture: bytes) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.asked: list[bytes] = []
        self.picture = picture

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is what this is about."""


@contextmanager
def serving(world: World) -> Iterator[list[bytes]]:
    """Run both servers and write their ports into the world; yields the list of what the forbidden one was asked."""
    with _Server(_Garbage, world.good_picture()) as garbage, _Server(_Forbidden, b"") as forbidden:
        threads = [threading.Thread(target=each.serve_forever, daemon=True) for each in (garbage, forbidden)]
        for thread in threads:
            thread.start()
        world.port, world.forbidden_port = garbage.server_address[1], forbidden.server_address[1]
        yield forbidden.asked
        for each, thread in zip((garbage, forbidden), threads, strict=True):
            each.shutdown()
            thread.join()
