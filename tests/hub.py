"""A hub on this machine: the part of its protocol that pushing a data set speaks, over real HTTP, with faults to order."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

TOKEN = "hf_letmein"
CHUNK = 18_400  # larger objects come in parts
LARGE = (".parquet", ".tar", ".png")
LICENCES = ("mit", "cc-by-4.0")


@dataclass
class Repository:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"*.parquet lfs\n"}})
    commits: dict[str, list[str]] = field(default_factory=lambda: {"main": ["0" * 40]})


@dataclass
class Hub:
    """What the hub holds, what it was asked, and what it answers instead: (part of "METHOD path") -> codes, one after another.

    A code below zero is answered after the work was done, as its absolute value: an answer that is lost.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    faults: dict[str, list[int]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    before_put: Callable[[], None] = lambda: None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def count(self, part: str) -> int:
        return sum(part in each for each in self.asked)


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()


class _Refused(Exception):
    def __init__(self, code: int, kind: str = "", **content: Any) -> None:
        self.code, self.kind, self.content = code, kind, content


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        pass

    def _serve(self) -> None:
        path = urlparse(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers: dict[str, str] = {}
        with self.hub.lock:
            told = f"{self.command} {path}"
            self.hub.asked.append(told)
            ordered = next((codes for part, codes in self.hub.faults.items() if part in told and codes), [])
            fault = ordered.pop(0) if ordered else 0
            if fault > 0:
                code, content = fault, {}
            else:
                try:
                    code, content = 200, self._answer(path, body, headers)
                except _Refused as refused:
                    code, content = refused.code, refused.content
                    headers["X-Error-Code"] = refused.kind
            code = -fault if fault < 0 else code
        data = json.dumps(content).encode()
        self.send_response(code)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _serve

    def _answer(self, path: str, body: bytes, headers: dict[str, str]) -> Any:
        if found := re.fullmatch(r"/storage/(\w+)(?:/(\d+))?", path):  # signed URLs need no token
            return self._store(found[1], found[2], body, headers)
        if path == "/api/validate-yaml":
            licence = re.search(r"^license: (.*)$", json.loads(body)["content"], re.MULTILINE)
            if licence and licence[1] not in LICENCES:
                raise _Refused(400, errors=[{"message": f'"license" must be one of {LICENCES}'}], warnings=[])
            return {"errors": [], "warnings": []}
        may_write = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.command == "POST" and not may_write:
            raise _Refused(403, error="this token may not write")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            assert wanted["type"] == "dataset"
            name = f"{wanted['organization']}/{wanted['name']}"
            url = f"{self.hub.url}/datasets/{name}"
            if name in self.hub.repositories:
                raise _Refused(409, error="exists", url=url)
            self.hub.repositories[name] = Repository(private=wanted.get("visibility") == "private")
            return {"url": url}
        found = re.fullmatch(r"(?:/api)?/datasets/(\w+/\w+)(?:\.git/info/lfs/objects)?(?:/(\w+))?(?:/(\w+))?", path)
        assert found is not None, path
        repository = self.hub.repositories.get(found[1])
        if repository is None or (repository.private and not may_write):
            raise _Refused(404, "RepoNotFound", error="Repository not found")
        verb, branch = found[2], found[3] or "main"
        if verb == "batch":
            return {"objects": [self._action(**each) for each in json.loads(body)["objects"]]}
        if verb == "branch":
            repository.branches[branch] = dict(repository.branches["main"])
            repository.commits[branch] = list(repository.commits["main"])
            return {}
        if branch not in repository.branches:
            raise _Refused(404, "RevisionNotFound", error="Invalid rev id")
        files = repository.branches[branch]
        if verb == "tree":
            assert parse_qs(urlparse(self.path).query)["recursive"][0].lower() == "true"
            return [_entry(name, data) for name, data in files.items()]
        if verb == "preupload":
            return {"files": [self._mode(files, each["path"]) for each in json.loads(body)["files"]]}
        if verb == "commit":
            return self._commit(found[1], repository, branch, [json.loads(line) for line in body.splitlines()])
        return {"id": found[1], "private": repository.private, "sha": repository.commits[branch][-1]}

    def _mode(self, files: dict[str, bytes], path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith(LARGE) else "regular"
        entry = _entry(path, files[path]) if path in files else {}
        oid = entry.get("lfs", entry).get("oid")
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _action(self, oid: str, size: int) -> dict[str, Any]:
        if oid in self.hub.objects:
            return {"oid": oid, "size": size}
        href = f"{self.hub.url}/storage/{oid}"
        header = {}
        if size > CHUNK:
            count = -(-size // CHUNK)
            header = {"chunk_size": str(CHUNK), **{str(number): f"{href}/{number}" for number in range(1, count + 1)}}
        return {"oid": oid, "size": size, "actions": {"upload": {"href": href, "header": header}}}

    def _store(self, oid: str, part: str | None, body: bytes, headers: dict[str, str]) -> Any:
        if self.command == "PUT":
            self.hub.before_put()
        if part is not None:
            self.hub.parts.setdefault(oid, {})[int(part)] = body
            headers["ETag"] = hashlib.md5(body).hexdigest()
            return {}
        data = body
        if self.command == "POST":  # all parts are there
            parts = self.hub.parts[oid]
            assert [each["partNumber"] for each in json.loads(body)["parts"]] == sorted(parts)
            data = b"".join(parts[number] for number in sorted(parts))
        if hashlib.sha256(data).hexdigest() != oid:
            raise _Refused(400, error="another digest")
        self.hub.objects[oid] = data
        return {}

    def _commit(self, name: str, repository: Repository, branch: str, lines: list[dict[str, Any]]) -> Any:
        (header,) = (each["value"] for each in lines if each["key"] == "header")
        if header.get("parentCommit") not in (None, repository.commits[branch][-1]):
            raise _Refused(412, error="a commit has happened since")
        files = repository.branches[branch]
        for each in lines:
            value = each["value"]
            if each["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif each["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif each["key"] == "deletedFile":
                del files[value["path"]]
        repository.commits[branch].append(hashlib.sha1(json.dumps(lines).encode()).hexdigest())
        oid = repository.commits[branch][-1]
        return {"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{oid}", "commitOid": oid}


def _entry(name: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": blob}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry
