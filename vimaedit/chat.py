"""A server that speaks the protocol of OpenAI's chat completions, as most servers of language models do."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import IO, Any

from vimaedit.errors import ConfigError, VimaeditError

ATTEMPTS = 5
FIRST_DELAY_S = 1.0
TIMEOUT_S = 120.0
BUSY = frozenset({408, 409, 425, 429})  # worth another try, as are all from 500 on
TOO_MUCH = frozenset({413, 422})  # of this question
FILTERED = ("content_filter", "content_policy", "content management policy", "safety")  # in a server's reason for a 400
SHOWN_CHARACTERS = 160
MAX_ANSWER_BYTES = 4_000_000  # what lies behind is not read: no answer of `max_tokens` is so long
PIECE_BYTES = 65_536


class _StaysHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would take the key to a host that nobody has named, and the question would be lost all the same."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Refused(VimaeditError):
    """The server, or the model behind it, does not answer this question; `kind`: filter or refusal."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {_whole(text)[:SHOWN_CHARACTERS]}")
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        return Refused, (self.kind, str(self).partition(": ")[2])


def server_key(option: str, variable: str | None) -> str | None:
    """Return the key of a server, which stands in a variable of this worker's environment; None where none is named.

    Raises: ConfigError where the variable is not set.
    """
    key = None if variable is None else header_key(f"{option}.key_variable", variable)
    if variable is not None and key is None:
        raise ConfigError(
            f"{option}.key_variable: got {variable!r}, which is not set on the worker; allowed: the name of an environment variable of the "
            "workers that holds the key"
        )
    return key


def header_key(option: str, variable: str) -> str | None:
    """Return the key in an environment variable, without the line end that files give it; None where it is not set or empty.

    Raises: ConfigError, without it, for one that no header can hold: clients quote it in their errors.
    """
    key = os.environ.get(variable, "").strip()
    if not all("!" <= sign <= "~" for sign in key):
        raise ConfigError(
            f"{option}: got {variable!r}, whose value holds a blank, a line end or letters beyond ASCII; allowed: a key alone"
        )
    return key or None


class ChatServer:
    """One model of a server. `option` is what errors call it by, such as `generator`."""

    def __init__(self, url: str, *, model: str, key: str | None, max_tokens: int, option: str) -> None:
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.model, self.key, self.max_tokens, self.option = model, key, max_tokens, option

    def ask(self, content: str | list[dict[str, Any]], seed: int) -> str:
        """Ask one question, a text or parts of text and pictures, for the likeliest answer.

        Raises: Refused; ConfigError where the server refuses whatever it is asked; ConnectionError where it does not answer after retries.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "seed": seed % 2**31,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        answer = self._post(urllib.request.Request(self.url, json.dumps(body).encode(), headers))
        try:
            choice = json.loads(answer)["choices"][0]
            message = choice["message"]
            if choice.get("finish_reason") == "content_filter":
                raise Refused("filter", "the answer was held back")
            if message.get("refusal"):
                raise Refused("refusal", str(message["refusal"]))
            return _whole(str(message["content"]))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return answer[:SHOWN_CHARACTERS].decode(errors="replace")  # read as a reply, it is rejected and quoted

    def _post(self, request: urllib.request.Request) -> bytes:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                deadline = time.monotonic() + TIMEOUT_S
                with urllib.request.build_opener(_StaysHere).open(request, timeout=TIMEOUT_S) as answer:
                    return _read(answer, deadline)
            except urllib.error.HTTPError as error:
                with error:  # it holds the connection
                    if error.code < 500 and error.code not in BUSY:
                        self._refuse(request, error)
                said: Exception = error
            except (OSError, http.client.HTTPException) as error:  # the latter where an answer ends before its end
                said = error
            if attempt == ATTEMPTS:
                text = f"{self.option}.url: {_host(request)} does not answer, asked {ATTEMPTS} times ({type(said).__name__}: {said})"
                raise ConnectionError(text) from said
            time.sleep(FIRST_DELAY_S * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    def _refuse(self, request: urllib.request.Request, error: urllib.error.HTTPError) -> None:
        said = " ".join(error.read(4096).decode(errors="replace").split())
        if error.code == 400 and any(word in said.casefold() for word in FILTERED):
            raise Refused("filter", said) from None
        if error.code in TOO_MUCH:
            raise Refused("too_large", f"{error.code} {said}") from None
        raise ConfigError(
            f"{self.option}.url: got {_host(request)}, which answers {error.code} {error.reason}{f' ({said[:SHOWN_CHARACTERS]})' if said else ''}; allowed: a server that takes POST "
            f"/chat/completions, {self.option}.model one of its models, {self.option}.key_variable the name of a variable with its key"
        ) from None


def _host(request: urllib.request.Request) -> str:
    return urllib.parse.urlsplit(request.full_url).netloc.rpartition("@")[2]


def _read(answer: IO[bytes], deadline: float) -> bytes:
    """Read an answer, or the first `MAX_ANSWER_BYTES` of it.

    Raises: TimeoutError where it is not done by then, however steadily it drips.
    """
    found = b""
    while len(found) < MAX_ANSWER_BYTES and (piece := answer.read1(PIECE_BYTES)):  # type: ignore[attr-defined]
        found += piece
        if time.monotonic() > deadline:
            raise TimeoutError(f"no whole answer within {TIMEOUT_S:g} s")
    return found


def _whole(text: str) -> str:
    """Return a text without the halves of characters that JSON can name: no file holds them."""
    return text.encode(errors="replace").decode()
