"""Images named by a path or URL: where they may lie, and fetching them."""

from __future__ import annotations

import http.client
import ipaddress
import os
import posixpath
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from pipelines.storage import Location, locate, read_bytes, retry
from vimaedit.errors import RequestError

MAX_REDIRECTS = 5
MAX_IMAGE_BYTES = 512 * 1024 * 1024
TIMEOUT_S = 30.0
MISSING = frozenset({404, 410})
REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, kw_only=True)
class ReferenceRules:
    """Where string images may lie: below `root` (a local folder or an fsspec URL), and on the web where allowed."""

    root: str
    allow_http: bool
    http_hosts: Sequence[str]


def fetch(reference: str, rules: ReferenceRules) -> bytes:
    """Read the picture that a record names.

    Raises: RequestError for a place that is not allowed or an object that is not there; OSError for the infrastructure's
    faults (throttling, 403, time-outs, resets), after retries.
    """
    if urlsplit(reference).scheme in ("http", "https"):
        if not rules.allow_http:
            raise _outside(reference, f"a path under {rules.root}, or allow_http=true")
        return retry(lambda: _fetch_http(reference, rules))
    place = resolve(reference, rules.root)
    try:
        return read_bytes(place)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise RequestError("missing_image", field="image", got=repr(reference), allowed=f"a file under {rules.root}") from error


def resolve(reference: str, root: str) -> Location:
    """Find the place a reference means; local ones after following every link.

    Raises: RequestError unless it lies under `root`.
    """
    base = locate(root)
    allowed = f"a path under {base.url}"
    if not reference or "\x00" in reference:
        raise _outside(reference, allowed)
    scheme = urlsplit(reference).scheme if "://" in reference else ""
    if base.is_local:
        if scheme not in ("", "file"):
            raise _outside(reference, allowed)
        folder = os.path.realpath(base.path)
        path = os.path.realpath(os.path.join(folder, reference.removeprefix("file://")))
        if os.path.commonpath([folder, path]) != folder:
            raise _outside(reference, allowed)
        return Location(base.fs, path)
    folder = base.path.rstrip("/")
    prefix = base.url.rstrip("/") + "/"
    if scheme and not reference.startswith(prefix):
        raise _outside(reference, allowed)
    path = posixpath.normpath(f"{folder}/{reference.removeprefix(prefix)}")
    if reference.startswith("/") or not path.startswith(folder + "/"):
        raise _outside(reference, allowed)
    return Location(base.fs, path)


def _outside(reference: str, allowed: str) -> RequestError:
    return RequestError("reference_not_allowed", field="image", got=repr(reference), allowed=allowed)


def _fetch_http(url: str, rules: ReferenceRules) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme not in ("http", "https") or not host:
            raise _outside(url, "http and https URLs")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = public_address(host, port, rules.http_hosts)
        connection = _PinnedHTTPS(host, port, address) if parts.scheme == "https" else _PinnedHTTP(host, port, address)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"User-Agent": "vimaedit"})
            answer = connection.getresponse()
            if answer.status in REDIRECTS:
                url = urljoin(url, answer.headers.get("Location", ""))
                continue
            return _read_answer(url, answer)
        except http.client.HTTPException as error:
            raise ConnectionError(f"{url}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()
    raise RequestError("too_many_redirects", field="image", got=repr(url), allowed=f"at most {MAX_REDIRECTS} redirects")


def _read_answer(url: str, answer: http.client.HTTPResponse) -> bytes:
    if answer.status in MISSING:
        raise RequestError(
            "missing_image", field="image", got=f"{answer.status} from {url!r}", allowed="an image that is there"
        )
    if answer.status in (401, 403, 408, 425, 429) or answer.status >= 500:
        raise ConnectionError(f"{url}: answered {answer.status} {answer.reason}")
    if answer.status != 200:
        raise RequestError("http_error", field="image", got=f"{answer.status} from {url!r}", allowed="an answer 200")
    data = answer.read(MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        raise RequestError("image_too_large", field="image", got=f"over {MAX_IMAGE_BYTES} bytes from {url!r}", allowed="less")
    return data


def public_address(host: str, port: int, listed_hosts: Sequence[str]) -> str:
    """Look up a host and give the one address to connect to, so that a second look-up cannot answer differently.

    Raises: RequestError where any address is private, loopback, link-local or otherwise not public, unless the host is listed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            raise RequestError("unknown_host", field="image", got=f"host {host!r}", allowed="a host that exists") from error
        raise ConnectionError(f"host {host!r}: {error}") from error
    addresses = [str(entry[4][0]) for entry in found]
    if host not in listed_hosts:
        for address in addresses:
            ip = ipaddress.ip_address(address.split("%")[0])
            mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
            if not (mapped or ip).is_global or ip.is_multicast:
                raise RequestError(
                    "private_address",
                    field="image",
                    got=f"host {host!r} at {address}",
                    allowed="public addresses, or hosts in http_hosts",
                )
    return addresses[0]


class _PinnedHTTP(http.client.HTTPConnection):
    """Connects to an address that was checked, whatever the name resolves to now."""

    def __init__(self, host: str, port: int, address: str) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S)
        self.address = address

    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), TIMEOUT_S)


class _PinnedHTTPS(_PinnedHTTP):
    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
