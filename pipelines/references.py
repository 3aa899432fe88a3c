"""Images named by a path or URL: where they may lie, and fetching them."""

from __future__ import annotations

import errno
import http.client
import ipaddress
import os
import posixpath
import socket
import ssl
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote, urljoin, urlsplit

from pipelines.secrets import mask_urls
from pipelines.storage import Location, locate, read_bytes, retry
from vimaedit.errors import RequestError

MAX_REDIRECTS = 5
MAX_IMAGE_BYTES = 512 * 1024 * 1024
TIMEOUT_S = 30.0  # of one operation on a socket
TOTAL_TIMEOUT_S = 120.0  # of a whole fetch with its redirects
PIECE_BYTES = 1024 * 1024
QUOTED_BEFORE = "/%:@!$&'()*+,;=~?-._"  # may stand in a path or query; `%` begins what was quoted before
WEB = ("http", "https")
NO_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
NAT64 = ipaddress.ip_network("64:ff9b::/96")
IPV4_COMPATIBLE = ipaddress.ip_network("::/96")
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

    Raises: RequestError for a place that is not allowed, a name that cannot be one, or an object that is not there; OSError
    for the infrastructure's faults (throttling, 403, time-outs, resets), after retries.
    """
    if _scheme(rules.root) in WEB and _scheme(reference) not in WEB:
        reference = _below_web_root(reference, rules.root)
    if _scheme(reference) in WEB:
        if not rules.allow_http:
            raise _outside(reference, f"a path under {mask_urls(rules.root)}, or allow_http=true")
        return retry(lambda: _fetch_http(reference, rules))
    place = resolve(reference, rules.root)
    try:
        return _read_file(reference, place.path) if place.is_local else read_bytes(place)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        allowed = f"a file under {mask_urls(rules.root)}"
        raise RequestError("missing_image", field="image", got=_shown(reference), allowed=allowed) from error


def resolve(reference: str, root: str) -> Location:
    """Find the place a reference means; local ones after following every link.

    Raises: RequestError unless it lies under `root` and can be a name at all.
    """
    base = locate(root)
    allowed = f"a path under {mask_urls(base.url)}"
    if not reference or "\x00" in reference:
        raise _outside(reference, allowed)
    scheme = _scheme(reference)
    if base.is_local:
        if scheme not in ("", "file"):
            raise _outside(reference, allowed)
        folder = os.path.realpath(base.path)
        try:
            path = os.path.realpath(os.path.join(folder, reference.removeprefix("file://")))
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            pass  # whether it may be named comes first, whether it is there when it is read
        except (OSError, UnicodeError) as error:
            if not isinstance(error, UnicodeError) and error.errno not in NO_NAMES:
                raise
            raise _outside(reference, allowed) from error
        if os.path.commonpath([folder, path]) != folder:
            raise _outside(reference, allowed)
        return Location(base.fs, path)
    folder = base.path.rstrip("/")
    prefix = base.url.rstrip("/") + "/"
    if scheme and not reference.startswith(prefix):
        raise _outside(reference, allowed)
    name = posixpath.normpath(reference.removeprefix(prefix))
    if reference.startswith("/") or name.startswith(("/", "..")) or name == ".":
        raise _outside(reference, allowed)
    return Location(base.fs, f"{folder}/{name}")


def _scheme(reference: str) -> str:
    return reference.split("://", 1)[0].lower() if "://" in reference else ""


def _below_web_root(reference: str, root: str) -> str:
    """Join a relative reference to a web root; what the root asks with (`?token=...`) is asked along."""
    folder, _, query = root.partition("?")
    name = posixpath.normpath(reference)
    if not reference or _scheme(reference) or name == "." or ".." in unquote(name).split("/") or name.startswith("/"):
        raise _outside(reference, f"a path under {mask_urls(root)}")
    return f"{folder.rstrip('/')}/{name}" + (f"?{query}" if query else "")


def _read_file(reference: str, path: str) -> bytes:
    """Read a regular local file: a pipe or device could hold the reader for ever."""
    facts = os.stat(path)
    if stat.S_ISDIR(facts.st_mode):
        raise IsADirectoryError(path)
    if not stat.S_ISREG(facts.st_mode):
        raise RequestError("not_a_file", field="image", got=f"{_shown(reference)}, a pipe or device", allowed="a regular file")
    if facts.st_size > MAX_IMAGE_BYTES:
        got = f"{facts.st_size} bytes in {_shown(reference)}"
        raise RequestError("image_too_large", field="image", got=got, allowed=f"at most {MAX_IMAGE_BYTES} bytes")
    with open(path, "rb") as stream:
        return stream.read()


def _shown(reference: str) -> str:
    return repr(mask_urls(reference))


def _outside(reference: str, allowed: str) -> RequestError:
    return RequestError("reference_not_allowed", field="image", got=_shown(reference), allowed=allowed)


@dataclass(frozen=True)
class _WebPlace:
    """A URL taken apart: `host` in ASCII, `target` the quoted path and query to ask for."""

    secure: bool
    host: str
    port: int
    target: str


def _parse_url(url: str) -> _WebPlace:
    """Take a URL apart. Letters that may not stand in one are quoted, as browsers do.

    Raises: RequestError for what is no http(s) URL.
    """
    allowed = "a whole http or https URL"
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = (parts.hostname or "").encode("idna").decode()
        target = quote(parts.path or "/", safe=QUOTED_BEFORE) + (
            f"?{quote(parts.query, safe=QUOTED_BEFORE)}" if parts.query else ""
        )
    except ValueError as error:  # a port out of range, an open bracket, a label of no or too many letters, half a character
        raise _outside(url, allowed) from error
    if parts.scheme not in WEB or not host:
        raise _outside(url, allowed)
    return _WebPlace(secure=parts.scheme == "https", host=host, port=port, target=target)


def _fetch_http(url: str, rules: ReferenceRules) -> bytes:
    deadline = time.monotonic() + TOTAL_TIMEOUT_S
    for _ in range(MAX_REDIRECTS + 1):
        place = _parse_url(url)
        address = public_address(place.host, place.port, rules.http_hosts)
        connection = (_PinnedHTTPS if place.secure else _PinnedHTTP)(place.host, place.port, address)
        try:
            connection.request("GET", place.target, headers={"User-Agent": "vimaedit"})
            answer = connection.getresponse()
            if answer.status in REDIRECTS:
                url = urljoin(url, answer.headers.get("Location", ""))
                continue
            return _read_answer(url, answer, deadline)
        except http.client.InvalidURL as error:
            raise _outside(url, "a whole http or https URL") from error
        except http.client.HTTPException as error:
            raise ConnectionError(f"{mask_urls(url)}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()
    raise RequestError("too_many_redirects", field="image", got=_shown(url), allowed=f"at most {MAX_REDIRECTS} redirects")


def _read_answer(url: str, answer: http.client.HTTPResponse, deadline: float) -> bytes:
    """Read an answer's body, whole and before the deadline.

    Raises: RequestError, or ConnectionError and TimeoutError, which are worth another try.
    """
    if answer.status in MISSING:
        raise RequestError(
            "missing_image", field="image", got=f"{answer.status} from {_shown(url)}", allowed="an image that is there"
        )
    if answer.status in (401, 403, 408, 425, 429) or answer.status >= 500:
        raise ConnectionError(f"{mask_urls(url)}: answered {answer.status} {answer.reason}")
    if answer.status != 200:
        raise RequestError("http_error", field="image", got=f"{answer.status} from {_shown(url)}", allowed="an answer 200")
    pieces: list[bytes] = []
    left = MAX_IMAGE_BYTES
    while piece := answer.read1(PIECE_BYTES):
        pieces.append(piece)
        left -= len(piece)
        if left < 0:
            got = f"over {MAX_IMAGE_BYTES} bytes from {_shown(url)}"
            raise RequestError("image_too_large", field="image", got=got, allowed="less")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{mask_urls(url)}: not complete after {TOTAL_TIMEOUT_S:g} s")
    if answer.length:
        raise ConnectionError(f"{mask_urls(url)}: the answer ended {answer.length} bytes early")
    return b"".join(pieces)


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
            if not _is_public(ipaddress.ip_address(address.split("%")[0])):
                raise RequestError(
                    "private_address",
                    field="image",
                    got=f"host {host!r} at {address}",
                    allowed="public addresses, or hosts in http_hosts",
                )
    return addresses[0]


def _is_public(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address, and one that is carried inside it, belongs to the public network."""
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or ip.sixtofour
        if ip in NAT64 or ip in IPV4_COMPATIBLE:
            carried = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if ip.is_site_local or ip.teredo is not None:
            return False
        if carried is not None:
            return _is_public(carried)
    return ip.is_global and not ip.is_multicast


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
