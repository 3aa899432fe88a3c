from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines.store import fetch as references
from pipelines.store import location as storage
from pipelines.store.fetch import ReferenceRules, fetch, known_size, public_address, resolve
from vimaedit.errors import RequestError


def rules(root: str, allow_http: bool = False, http_hosts: tuple[str, ...] = ()) -> ReferenceRules:
    return ReferenceRules(root=root, allow_http=allow_http, http_hosts=http_hosts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.png").write_bytes(b"picture")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "images-other").mkdir()
    (tmp_path / "images-other" / "b.png").write_bytes(b"other")
    return root


def test_paths_under_the_root_are_read(folder: Path) -> None:
    for reference in ("sub/a.png", "sub/../sub/a.png", str(folder / "sub" / "a.png"), f"file://{folder}/sub/a.png"):
        assert fetch(reference, rules(str(folder))) == b"picture"


@pytest.mark.parametrize(
    "reference", ["../secret.png", "link.png", "/etc/hostname", "../images-other/b.png", "s3://b/a.png", "", "a\x00.png"]
)
def test_paths_outside_the_root_are_refused_after_following_links(folder: Path, reference: str) -> None:
    with pytest.raises(RequestError, match=r"image: got .*; allowed: a path under .*images") as caught:
        fetch(reference, rules(str(folder)))
    assert caught.value.code == "reference_not_allowed"


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("nothing.png", "there is no such file"),
        ("sub/a.png/b", "there is no such file"),
        ("sub", "which is a folder"),
        ("x" * 300, r"which can be no file \(File name too long\)"),
    ],
)
def test_a_missing_file_is_a_rejection_that_says_so(folder: Path, reference: str, why: str) -> None:
    with pytest.raises(RequestError, match=f"image: got '{reference}', {why}; allowed: a file that is there, under") as caught:
        fetch(reference, rules(str(folder)))
    assert caught.value.code == "missing_image"


def test_a_file_url_means_what_path_as_uri_says(folder: Path) -> None:
    for name in ("a b.png", "ünd#1?.png", "100%25.png"):
        (folder / name).write_bytes(name.encode())
        uri = (folder / name).as_uri()
        for spelled in (uri, uri.replace("file://", "file://localhost"), uri.replace("file://", "FILE:")):
            assert fetch(spelled, rules(str(folder))) == name.encode()
    assert fetch(f"file://{folder}/a b.png", rules(str(folder))) == b"a b.png"
    assert fetch(f"file://{folder}/100%25.png", rules(str(folder))) == b"100%25.png"  # of a name that was not quoted
    (folder / "100%.png").write_bytes(b"quoted")
    assert fetch(f"file://{folder}/100%25.png", rules(str(folder))) == b"quoted"
    assert fetch("sub/a.png", rules(folder.as_uri())) == b"picture"
    for reference in (
        (folder.parent / "secret.png").as_uri(),
        f"file://{folder}/%2e%2e/secret.png",
        "file://host/a.png",
        "file:///a%00b",
    ):
        with pytest.raises(RequestError, match="allowed: a (path under|file that is there)"):
            fetch(reference, rules(str(folder)))
        assert known_size(reference, rules(str(folder))) == 0


def test_keys_are_taken_as_they_stand() -> None:
    root = storage.locate("memory://keys/images")
    for name in ("a//b.png", "c/d.png", "/e.png", "f::g#h?i.png"):
        storage.put_atomic(root / name, name.encode())
    for reference, name in (
        ("a//b.png", "a//b.png"),
        ("x/../a//b.png", "a//b.png"),
        ("memory://keys/images/a//b.png", "a//b.png"),
        ("memory:///keys/other/../images/./a//b.png", "a//b.png"),
        ("MEMORY://keys/images//e.png", "/e.png"),
        ("c//d.png", "c/d.png"),  # where no key has the two slashes, they are sloppy spelling
        ("f::g#h?i.png", "f::g#h?i.png"),
    ):
        assert fetch(reference, rules("memory://keys/images")) == name.encode()
    for reference in ("a/../../images-other/x.png", "memory://keys/images/../secret.png", "memory://keys", "/a//b.png"):
        with pytest.raises(RequestError, match="allowed: a path under memory:///keys/images"):
            fetch(reference, rules("memory://keys/images/"))
    root.fs.rm("/keys", recursive=True)


def test_other_roots_are_compared_by_their_paths() -> None:
    storage.put_atomic(storage.locate("memory://refs/images/a.png"), b"picture")
    root = "memory://refs/images"
    assert fetch("a.png", rules(root)) == b"picture"
    assert fetch("memory:///refs/images/a.png", rules(root)) == b"picture"
    for reference in ("../secret.png", "memory:///refs/images-other/a.png", "/refs/images/a.png", "s3://refs/images/a.png"):
        with pytest.raises(RequestError, match="allowed: a path under memory:///refs/images"):
            resolve(reference, root)


class Site(BaseHTTPRequestHandler):
    """Answers by path; `/to/<n>` redirects n times, `/busy` answers 503 once and then the picture."""

    busy = 0

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            left = int(self.path.rsplit("/", 1)[1])
            self.answer(302, location=f"/to/{left - 1}" if left > 1 else "/a.png")
        elif self.path == "/out":
            self.answer(302, location=f"http://127.0.0.2:{self.server.server_address[1]}/a.png")
        elif self.path == "/bracket":
            self.answer(302, location="http://[::1")
        elif self.path == "/file":
            self.answer(302, location="file:///etc/hostname")
        elif self.path == "/busy" and type(self).busy == 0:
            type(self).busy += 1
            self.answer(503)
        elif self.path in (
            "/a.png",
            "/busy",
            "/a.png?size=7",
            "/a%20b.png",
            "/caf%C3%A9.png?x=%20y",
            "/sub/a.png?token=SECRET",
            "/sub/a.png?from=../x//y&token=SECRET",
        ):
            self.answer(200, body=b"picture")
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "99")
            self.end_headers()
            self.wfile.write(b"pic")
        elif self.path == "/chunk":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"9\r\npic")
        elif self.path in ("/drip", "/drip-headers"):
            self.send_response(200)
            if self.path == "/drip":
                self.end_headers()
            self.flush_headers()
            with contextlib.suppress(OSError):
                for _ in range(200):
                    self.wfile.write(b"p")
                    self.wfile.flush()
                    self.server.dripped.wait(0.02)  # type: ignore[attr-defined]
        else:
            self.answer(403 if self.path == "/forbidden" else 400 if self.path == "/wrong" else 404)

    def answer(self, code: int, body: bytes = b"", location: str | None = None) -> None:
        self.send_response(code)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.dripped = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_http_needs_to_be_allowed_and_private_hosts_to_be_listed(site: str, folder: Path) -> None:
    with pytest.raises(RequestError, match="allowed: a path under .*, or allow_http=true"):
        fetch(f"{site}/a.png", rules(str(folder)))
    with pytest.raises(RequestError, match=r"host '127.0.0.1' at 127.0.0.1; allowed: public addresses, or hosts in http_hosts"):
        fetch(f"{site}/a.png", rules(str(folder), allow_http=True))
    for name in ("127.0.0.1:1", "127.0.0.2", "x127.0.0.1"):
        with pytest.raises(RequestError, match="hosts in http_hosts"):
            fetch(f"{site}/a.png", rules(str(folder), allow_http=True, http_hosts=(name,)))
    for name in (site, site.removeprefix("http://")):
        assert fetch(f"{site}/a.png", rules(str(folder), allow_http=True, http_hosts=(name,))) == b"picture"
    listed = rules(str(folder), allow_http=True, http_hosts=("127.0.0.1",))
    assert fetch(f"{site}/a.png", listed) == b"picture"
    assert fetch(f"{site}/a.png?size=7", listed) == b"picture"
    assert fetch(f"{site}/to/3", listed) == b"picture"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/out", "host '127.0.0.2' at 127.0.0.2; allowed: public addresses"),  # checked at the redirect
        ("/file", "got 'file:///etc/hostname'; allowed: a whole http or https URL"),
        ("/bracket", r"got 'http://\[::1'; allowed: a whole http or https URL"),
        ("/to/9", "allowed: at most 5 redirects"),
        ("/nothing", "got 404 from .*; allowed: an image that is there"),
        ("/wrong", "got 400 from .*; allowed: an answer 200"),
    ],
)
def test_what_a_site_answers_may_reject_the_record(site: str, folder: Path, path: str, text: str) -> None:
    with pytest.raises(RequestError, match=text):
        fetch(f"{site}{path}", rules(str(folder), allow_http=True, http_hosts=("127.0.0.1",)))


def test_trouble_of_a_site_is_tried_again_and_is_no_rejection(site: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = rules(str(folder), allow_http=True, http_hosts=("127.0.0.1",))
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    assert fetch(f"{site}/busy", listed) == b"picture"
    with pytest.raises(ConnectionError, match="answered 403"):
        fetch(f"{site}/forbidden", listed)


def test_what_may_not_stand_in_a_url_is_quoted(site: str, folder: Path) -> None:
    listed = rules(str(folder), allow_http=True, http_hosts=("127.0.0.1",))
    for path in ("/a b.png", "/a%20b.png", "/café.png?x= y"):
        assert fetch(site + path, listed) == b"picture"


@pytest.mark.parametrize(
    "reference",
    [
        "http://[::1",
        "http://[bad/x",
        "http://host:99999/a.png",
        "http://a..b/a.png",
        "http:///a.png",
        f"http://{'x' * 70}.org/",
    ],
)
def test_what_is_no_url_is_a_rejection(folder: Path, reference: str) -> None:
    with pytest.raises(RequestError, match="allowed: a whole http or https URL"):
        fetch(reference, rules(str(folder), allow_http=True))


@pytest.mark.parametrize("reference", ["x" * 300 + ".png", "loop.png", "\ud800.png"])
def test_what_is_no_file_name_is_a_rejection(folder: Path, reference: str) -> None:
    if not (folder / "loop.png").is_symlink():
        (folder / "loop.png").symlink_to("loop.png")
    with pytest.raises(RequestError, match="allowed: a (path under|file that is there, under)"):
        fetch(reference, rules(str(folder)))


def test_what_is_no_object_name_is_a_rejection() -> None:
    for reference, allowed in (("x" * 1100, "of at most 1024 bytes"), ("\ud800/../..", "a path under")):
        with pytest.raises(RequestError, match=f"allowed: .*{allowed}"):
            fetch(reference, rules("memory://refs/images"))
    with pytest.raises(RequestError, match="there is no such file; allowed: a file that is there, under"):
        fetch("..a.png", rules("memory://refs/images"))


def test_a_place_outside_that_may_not_be_looked_at_is_a_rejection(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patched:
        patched.setattr(references.os, "stat", refused)
        with pytest.raises(RequestError, match="allowed: a path under"):
            fetch("../secret.png", rules(str(folder)))
        with pytest.raises(PermissionError):
            fetch("sub/a.png", rules(str(folder)))


def test_what_changes_while_it_is_opened_holds_nobody_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "pipe.png")
    regular = os.stat(folder / "sub" / "a.png")
    with monkeypatch.context() as patched:
        patched.setattr(references.os, "stat", lambda path: regular)
        assert fetch("pipe.png", rules(str(folder))) == b""
    monkeypatch.setattr(references, "MAX_IMAGE_BYTES", 8)
    (folder / "grown.png").write_bytes(b"123456789")
    with pytest.raises(RequestError, match="got 9 bytes in 'grown.png'; allowed: at most 8 bytes"):
        fetch("grown.png", rules(str(folder)))


def test_pipes_and_too_large_files_are_not_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    with (folder / "huge.png").open("wb") as stream:
        stream.truncate(references.MAX_IMAGE_BYTES + 1)
    with pytest.raises(RequestError, match="got 'pipe.png', a pipe or device; allowed: a regular file"):
        fetch("pipe.png", rules(str(folder)))
    with pytest.raises(RequestError, match=f"got {references.MAX_IMAGE_BYTES + 1} bytes in 'huge.png'; allowed: at most"):
        fetch("huge.png", rules(str(folder)))


def test_an_answer_that_ends_early_or_drips_is_the_infrastructures(
    site: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = rules(str(folder), allow_http=True, http_hosts=("127.0.0.1",))
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    with pytest.raises(ConnectionError, match="/short: .*ended 96 bytes early"):
        fetch(f"{site}/short", listed)
    with pytest.raises(ConnectionError, match="/chunk: IncompleteRead"):
        fetch(f"{site}/chunk", listed)
    monkeypatch.setattr(references, "FETCH_TOTAL_S", 0.1)
    for path in ("/drip", "/drip-headers"):
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=f"{path}: (not complete after 0.1 s|timed out)"):
            fetch(site + path, listed)
        assert time.monotonic() - started < 3


def test_a_web_root_keeps_what_it_asks_with_and_its_secrets(site: str, folder: Path) -> None:
    root = f"{site}/sub/?token=SECRET"
    listed = rules(root, allow_http=True, http_hosts=("127.0.0.1",))
    assert fetch("a.png", listed) == b"picture"
    assert fetch("./a.png?from=../x//y", listed) == b"picture"
    for reference in ("../a.png?key=SECRET", "%2e%2e/a.png", "/a.png", ".", "s3://b/a.png"):
        with pytest.raises(RequestError, match="allowed: a path under") as caught:
            fetch(reference, listed)
        assert "SECRET" not in str(caught.value)
    with pytest.raises(RequestError, match="or allow_http=true"):
        fetch("a.png", rules(root))


def test_secrets_of_references_are_not_shown(site: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    listed = rules(str(folder), allow_http=True, http_hosts=("127.0.0.1",))
    users = ("user:SECRET", "user:p/SECRET", "user:p#SECRET", "user:it'sSECRET", 'user:"SECRET', "user:two words SECRET")
    urls = [f"{site}/forbidden?X-Amz-Signature=SECRET", f"{site}/nothing?token=SECRET", "//user:SECRET@bucket/a.png"]
    urls += [f"s3://{user}@bucket/a.png" for user in users] + ["s3://b/a?token=a SECRET", "s3://b/a?token='SECRET'&x=1"]
    for url in urls:
        with pytest.raises((RequestError, ConnectionError)) as caught:
            fetch(url, listed)
        assert "SECRET" not in str(caught.value) and "***" in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::1",
        "fec0::1",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b:1::808:808",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)
def test_addresses_that_carry_others_are_looked_into(address: str) -> None:
    with pytest.raises(RequestError, match="allowed: public addresses"):
        public_address(address, 80, ())


@pytest.mark.parametrize("host", ["localhost", "10.1.2.3", "169.254.169.254", "::1", "::ffff:10.0.0.1", "0.0.0.0", "224.0.0.1"])
def test_addresses_that_are_not_public_are_refused(host: str) -> None:
    with pytest.raises(RequestError, match="private_address|public addresses"):
        public_address(host, 80, ())
    if host != "::ffff:10.0.0.1":
        assert public_address(host, 80, (host,))


def test_a_public_address_is_taken_as_it_is() -> None:
    for address in ("8.8.8.8", "64:ff9b::808:808", "2606:4700::1111"):
        assert public_address(address, 80, ()) == address
