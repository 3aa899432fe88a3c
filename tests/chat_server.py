"""A real server that speaks the protocol of chat completions, and answers as it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Reply = tuple[int, dict[str, Any] | bytes]


class Server:
    """A chat server; `answer(question, number of times it was asked)` makes its replies."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Callable[[list[dict[str, Any]], int], Reply] = lambda content, times: scored(8, 6)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # what a client makes of a redirected question
                outer.bodies.append(({}, dict(self.headers)))
                self.send_response(200)
                self.end_headers()

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append((body, dict(self.headers)))
                content = body["messages"][0]["content"]
                key = json.dumps(content)
                outer.asked.append(key)
                status, reply = outer.answer(content, outer.asked.count(key))
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                if status in (301, 302, 307):
                    self.send_header("Location", reply.decode() if isinstance(reply, bytes) else "")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.bodies: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def scored(first: float, second: float) -> Reply:
    return 200, said(f'Sure: {{"score": [{first}, {second}], "reasoning": "so"}}')


def said(text: str | None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text, **more}, "finish_reason": "stop"}]}
