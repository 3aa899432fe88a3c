"""Images named by a path or URL: where they may lie, and fetching them."""

from __future__ import annotations

import errno
import http.client
import io
import ipaddress
import os
import re
import socket
import ssl
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from pipelines.store.location import Location, local_path, locate, read_bytes, retry
from pipelines.store.masking import mask_url, mask_urls
from pipelines.store.patience import FETCH_SOCKET_S, FETCH_TOTAL_S, MAX_REDIRECTS, PATIENT_ATTEMPTS
from vimaedit.errors import RequestError

MAX_IMAGE_BYTES = 512 * 1024 * 1024
PIECE_BYTES = 1024 * 1024
QUOTED_BEFORE = "/%:@!$&'()*+,;=~?-._"  # may stand in a path or query; `%` begins what was quoted before
WEB = ("http", "https")
WHOLE_URL = "a whole http or https URL"
NO_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
MAX_KEY_BYTES = 1024  # of an object's name in S3, GCS and Azure
NO_HOST = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
# Their last 32 bits are an IPv4 address: IPv4-compatible, IPv4-translated, NAT64.
CARRIERS = tuple(ipaddress.IPv6Network(network) for network in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96"))
LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
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
        deadline = time.monotonic() + FETCH_TOTAL_S
        return retry(lambda: _fetch_http(reference, rules, deadline))
    place = resolve(reference, rules.root)
    try:
        # As patient as with the records themselves: a store that is away for a minute must not fail a thousand rows.
        return _read_file(reference, place.path) if place.is_local else _read_object(place, locate(rules.root))
    except IsADirectoryError as error:
        raise _missing(reference, "which is a folder", rules) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(reference, "there is no such file", rules) from error
    except OSError as error:
        if place.is_local and error.errno in NO_NAMES:
            raise _missing(reference, f"which can be no file ({os.strerror(error.errno or 0)})", rules) from error
        raise


def known_size(reference: str, rules: ReferenceRules) -> int:
    """Say how many bytes a local picture has; 0 where that shows only once it is fetched."""
    if _scheme(reference) in WEB or _scheme(rules.root) in WEB:
        return 0
    try:
        place = resolve(reference, rules.root)
        return os.stat(place.path).st_size if place.is_local else 0
    except (RequestError, OSError):  # fetching it says what is wrong
        return 0


def resolve(reference: str, root: str) -> Location:
    """Find the place a reference means; local ones after following every link. Places are compared by what they mean: schemes of
    one store, `..`, `file:` URLs with quoted letters. In a store's keys several slashes in a row stay as they are.

    Raises: RequestError unless it lies under `root` and can be a name at all.
    """
    base = locate(root)
    allowed = f"a path under {mask_urls(base.url)}"
    if not reference or "\x00" in reference:
        raise _outside(reference, allowed)
    if base.is_local:
        return Location(base.fs, _resolve_local(reference, os.path.realpath(base.path), allowed))
    folder, named = f"{base.path.rstrip('/')}/", reference
    scheme = _scheme(reference)
    if scheme:
        protocols = [base.fs.protocol] if isinstance(base.fs.protocol, str) else base.fs.protocol
        if scheme not in (*protocols, _scheme(base.url)):
            raise _outside(reference, allowed)
        whole = _without_dots(f"/{_after_scheme(reference).lstrip('/')}")
        top = f"/{folder.lstrip('/')}"
        if whole is None or not whole.startswith(top):
            raise _outside(reference, allowed)
        named = whole[len(top) :]
    name = None if named.startswith("/") and not scheme else _without_dots(named)
    if not name:
        raise _outside(reference, allowed)
    path = f"{folder}{name}"
    if len(path.encode(errors="replace")) > MAX_KEY_BYTES:
        raise _outside(reference, f"{allowed} of at most {MAX_KEY_BYTES} bytes")
    return Location(base.fs, path)


def _resolve_local(reference: str, folder: str, allowed: str) -> str:
    named, scheme = local_path(reference), _scheme(reference)
    if named is None and scheme not in ("", "file"):
        raise _outside(reference, allowed)
    if named is None:
        named = _after_scheme(reference) if scheme else reference
    try:
        path = os.path.realpath(os.path.join(folder, named))
    except ValueError as error:  # letters that no path has, a quoted zero byte among them
        raise _outside(reference, allowed) from error
    if os.path.commonpath([folder, path]) != folder:
        raise _outside(reference, allowed)
    return path


def _read_object(place: Location, root: Location) -> bytes:
    """Read an object. Where there is none of a key with several slashes in a row, these are taken for sloppy spelling."""
    try:
        return read_bytes(place, attempts=PATIENT_ATTEMPTS)
    except FileNotFoundError:
        folder = f"{root.path.rstrip('/')}/"
        name = re.sub("/+", "/", place.path[len(folder) :].lstrip("/"))
        if folder + name == place.path:
            raise
        return read_bytes(Location(place.fs, folder + name), attempts=PATIENT_ATTEMPTS)


def _without_dots(name: str) -> str | None:
    """Follow the `.` and `..` of a key, and leave all else as it stands; None where they lead out of it."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == ".." and not parts:
            return None
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _scheme(reference: str) -> str:
    return reference.split("://", 1)[0].lower() if "://" in reference else ""


def _after_scheme(reference: str) -> str:
    return reference.partition("://")[2]


def _below_web_root(reference: str, root: str) -> str:
    """Join a relative reference to a web root; what the root asks with (`?token=...`) is asked along."""
    folder, _, root_query = root.partition("?")
    path, _, own_query = reference.partition("?")
    name = _without_dots(path)
    if not name or _scheme(path) or name.startswith("/") or ".." in unquote(name).split("/"):
        raise _outside(reference, f"a path under {mask_urls(root)}")
    query = "&".join(part for part in (own_query, root_query) if part)
    return f"{folder.rstrip('/')}/{name}" + (f"?{query}" if query else "")


def _read_file(reference: str, path: str) -> bytes:
    """Read a regular local file: a pipe or device could hold the reader for ever, a sparse file fill the memory."""
    facts = os.stat(path)
    if stat.S_ISDIR(facts.st_mode):
        raise IsADirectoryError(path)
    if not stat.S_ISREG(facts.st_mode):
        raise RequestError("not_a_file", field="image", got=f"{_shown(reference)}, a pipe or device", allowed="a regular file")
    # Others write there too: what is opened may be another kind of thing by now, or have grown.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        data = stream.read(MAX_IMAGE_BYTES + 1) if facts.st_size <= MAX_IMAGE_BYTES else b""
    size = max(facts.st_size, len(data))
    if size > MAX_IMAGE_BYTES:
        got = f"{size} bytes in {_shown(reference)}"
        raise RequestError("image_too_large", field="image", got=got, allowed=f"at most {MAX_IMAGE_BYTES} bytes")
    return data


def _shown(reference: str) -> str:
    return repr(mask_url(reference))


def _missing(reference: str, why: str, rules: ReferenceRules) -> RequestError:
    allowed = f"a file that is there, under {mask_urls(rules.root)}"
    return RequestError("missing_image", field="image", got=f"{_shown(reference)}, {why}", allowed=allowed)


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
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = (parts.hostname or "").encode("idna").decode()
        target = quote(parts.path or "/", safe=QUOTED_BEFORE) + (
            f"?{quote(parts.query, safe=QUOTED_BEFORE)}" if parts.query else ""
        )
    except ValueError as error:  # a port out of range, an open bracket, a label of no or too many letters, half a character
        raise _outside(url, WHOLE_URL) from error
    if parts.scheme not in WEB or not host:
        raise _outside(url, WHOLE_URL)
    return _WebPlace(secure=parts.scheme == "https", host=host, port=port, target=target)


def _fetch_http(url: str, rules: ReferenceRules, deadline: float) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        place = _parse_url(url)
        address = public_address(place.host, place.port, rules.http_hosts)
        connection = (_PinnedHTTPS if place.secure else _PinnedHTTP)(place.host, place.port, address)
        try:
            connection.timeout = _seconds_left(deadline)
            connection.request("GET", place.target, headers={"User-Agent": "vimaedit"})
            with _TimedAnswer(connection.sock, deadline) as answer:
                answer.begin()
                if answer.status not in REDIRECTS:
                    return _read_answer(url, answer)
                url = _redirected(url, answer.headers.get("Location", ""))
        except http.client.InvalidURL as error:
            raise _outside(url, WHOLE_URL) from error
        except http.client.HTTPException as error:
            raise ConnectionError(f"{mask_url(url)}: {type(error).__name__}: {error}") from error
        except TimeoutError as error:
            raise TimeoutError(f"{mask_url(url)}: {error}") from error
        finally:
            connection.close()
    raise RequestError("too_many_redirects", field="image", got=_shown(url), allowed=f"at most {MAX_REDIRECTS} redirects")


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise _outside(location, WHOLE_URL) from error


def _read_answer(url: str, answer: http.client.HTTPResponse) -> bytes:
    """Read an answer's body, whole.

    Raises: RequestError, or ConnectionError and TimeoutError, which are worth another try.
    """
    if answer.status in MISSING:
        raise RequestError(
            "missing_image", field="image", got=f"{answer.status} from {_shown(url)}", allowed="an image that is there"
        )
    if answer.status in (401, 403, 408, 425, 429) or answer.status >= 500:
        raise ConnectionError(f"{mask_url(url)}: answered {answer.status} {answer.reason}")
    if answer.status != 200:
        raise RequestError("http_error", field="image", got=f"{answer.status} from {_shown(url)}", allowed="an answer 200")
    pieces: list[bytes] = []
    left = MAX_IMAGE_BYTES
    while piece := answer.read1(PIECE_BYTES):
        pieces.append(piece)
        left -= len(piece)
        if left < 0:
            got = f"over {MAX_IMAGE_BYTES} bytes from {_shown(url)}"
            raise RequestError("image_too_large", field="image", got=got, allowed=f"at most {MAX_IMAGE_BYTES} bytes")
    if answer.length:
        raise ConnectionError(f"{mask_url(url)}: the answer ended {answer.length} bytes early")
    return b"".join(pieces)


def public_address(host: str, port: int, listed_hosts: Sequence[str]) -> str:
    """Look up a host and give the one address to connect to, so that a second look-up cannot answer differently.

    Raises: RequestError where any address is private, loopback, link-local or otherwise not public, unless the host is listed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in NO_HOST:
            raise RequestError("unknown_host", field="image", got=f"host {host!r}", allowed="a host that exists") from error
        raise ConnectionError(f"host {host!r}: {error}") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not any(_means_host(name, host, port) for name in listed_hosts):
        for address in addresses:
            if not _is_public(ipaddress.ip_address(address.split("%")[0])):
                raise RequestError(
                    "private_address",
                    field="image",
                    got=f"host {host!r} at {address}",
                    allowed="public addresses, or hosts in http_hosts",
                )
    return addresses[0]


def _means_host(name: str, host: str, port: int) -> bool:
    """Whether a listed host, perhaps with its port or scheme, is this one."""
    try:
        parts = urlsplit(name if "//" in name else f"//{name}")
        named, own_port = parts.hostname or "", parts.port
    except ValueError:  # an IPv6 address without brackets
        named, own_port = name, None
    return host in (name, named.rstrip(".").lower()) and own_port in (None, port)


def _is_public(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address, and one that is carried inside it, belongs to the public network."""
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or ip.sixtofour
        if any(ip in network for network in CARRIERS):
            carried = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if ip.is_site_local or ip.teredo is not None or ip in LOCAL_NAT64:
            return False
        if carried is not None:
            return _is_public(carried)
    return ip.is_global and not ip.is_multicast


def _seconds_left(deadline: float) -> float:
    """How long the next operation on a socket may take.

    Raises: TimeoutError after the deadline.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"not complete after {FETCH_TOTAL_S:g} s")
    return min(FETCH_SOCKET_S, left)


class _TimedReads(io.RawIOBase):
    """Reads of a socket that end at the deadline, however small the pieces are that arrive."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        self.raw, self.sock, self.deadline = raw, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self.sock.settimeout(_seconds_left(self.deadline))
        return self.raw.readinto(buffer)

    def close(self) -> None:
        self.raw.close()
        super().close()


class _TimedAnswer(http.client.HTTPResponse):
    """An answer whose status, headers and body have to be there by the deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        super().__init__(sock, method="GET")
        self.fp = io.BufferedReader(_TimedReads(self.fp.detach(), sock, deadline))


class _PinnedHTTP(http.client.HTTPConnection):
    """Connects to an address that was checked, whatever the name resolves to now."""

    def __init__(self, host: str, port: int, address: str) -> None:
        super().__init__(host, port)
        self.address = address

    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), self.timeout)


class _PinnedHTTPS(_PinnedHTTP):
    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
