"""A Hugging Face hub of the tests' own, on 127.0.0.1: what `huggingface_hub` needs to download.

It lists a commit's files, redirects large ones to a store that knows ranges, and answers with the
headers and error codes of the real one. It can be told to cut connections or to send wrong bytes,
and it remembers what it was asked.
"""

import hashlib
import json
import re
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

LARGE = (".sft", ".safetensors", ".pth", ".pt", ".gguf")
_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/(.+)")
_WRITE = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit|paths-info)/(.+)")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_PIECE = 1 << 16


@dataclass
class Repository:
    """Branches by name, and the files of the commits that they are at."""

    branches: dict[str, str]
    commits: dict[str, dict[str, bytes]]
    token: str | None = None  # private: whoever has not this one does not see it
    is_gated: bool = False


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None
    sent: int = 0  # bytes so far


@dataclass
class SmallHub:
    """The state of the server; tests change it as they go."""

    url: str = ""
    store: str = ""  # of large files, another host
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    #: After how many bytes of a large file the connection is cut, and how often.
    cut_after: int | None = None
    cuts_left: int = 0
    gives_digests: bool = True
    knows_ranges: bool = True
    #: In the place of what the store has.
    wrong_bytes: bytes | None = None
    #: Whose token may write; what was uploaded, by its digest; the messages of commits.
    writer: str = "writer"
    uploads: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    #: What is wrong with every card.
    card_error: str | None = None
    #: An answer to everything.
    status: int | None = None

    def add(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit on a branch; its hash."""
        listing = sorted((path, hashlib.sha256(raw).hexdigest()) for path, raw in files.items())
        commit = hashlib.sha1(repr((name, listing)).encode()).hexdigest()  # noqa: S324 - as git
        repository = self.repositories.setdefault(name, Repository({}, {}))
        repository.branches[branch] = commit
        repository.commits[commit] = files
        return commit

    def sent(self, marker: str) -> int:
        """How many bytes of answers to GET whose path holds `marker`."""
        return sum(r.sent for r in self.requests if r.method == "GET" and marker in r.path)

    def digest(self, name: str, path: str) -> str:
        repository = self.repositories[name]
        raw = repository.commits[repository.branches["main"]][path]
        return hashlib.sha256(raw).hexdigest()


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, which the library reads when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def small_hub() -> Iterator[SmallHub]:
    hub = SmallHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.store = f"http://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: SmallHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        if self.hub.status is not None:
            self._send(self.hub.status, b"out of order")
        elif match := _API.fullmatch(path):
            self._list(match[1], match[2] or "main", "blobs" in parse_qs(url.query))
        elif match := _TREE.fullmatch(path):
            self._tree(match[1], match[2])
        elif match := _RESOLVE.fullmatch(path):
            self._resolve(match[1], match[2], match[3])
        elif path.startswith("/store/"):
            self._store(path)
        else:
            self._send(404, b"nothing here")

    do_HEAD = do_GET  # noqa: N815 - the base's name

    def do_PUT(self) -> None:
        """A large file, to the place that the batch named: its digest."""
        self.hub.uploads[self.path.rsplit("/", 1)[-1]] = self._body()
        self._send(200, b"")

    def do_POST(self) -> None:
        """What `create_commit` asks for, and `get_paths_info`."""
        path, raw = unquote(urlsplit(self.path).path), self._body()
        write = _WRITE.fullmatch(path)
        if self.hub.status is not None:
            self._send(self.hub.status, b"{}")
        elif path == "/api/validate-yaml":
            bad = self.hub.card_error
            errors = [] if bad is None else [{"message": bad}]
            self._json(200 if bad is None else 400, {"errors": errors, "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}"}}}
                for one in json.loads(raw)["objects"]
            ]
            self._json(200, {"transfer": "basic", "objects": objects})
        elif write is None:
            self._send(404, b"nothing here")
        else:
            self._write(write[1], write[2], write[3], raw)

    def _write(self, name: str, verb: str, branch: str, raw: bytes) -> None:
        found = self._files(name, branch)
        if found is None:
            return
        _, files = found
        if verb == "paths-info":
            wanted = set(parse_qs(raw.decode()).get("paths", []))
            wrong = self.hub.wrong_bytes
            held = {path: files[path] for path in wanted & files.keys()}
            if wrong is not None:
                held |= {path: wrong for path in held if path.endswith(LARGE)}
            self._json(200, [*map(_entry, held, held.values())])
        elif self.headers.get("Authorization") != f"Bearer {self.hub.writer}":
            self._send(403, b"")
        elif verb == "preupload":
            modes = [
                {"path": path, "uploadMode": mode, "shouldIgnore": False}
                for path in (one["path"] for one in json.loads(raw)["files"])
                for mode in ["lfs" if path.endswith(LARGE) else "regular"]
            ]
            self._json(200, {"files": modes})
        else:
            self._commit(name, branch, files, raw)

    def _commit(self, name: str, branch: str, before: dict[str, bytes], raw: bytes) -> None:
        files = dict(before)
        for line in raw.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif entry["key"] == "file":
                files[value["path"]] = b64decode(value["content"])
        commit = self.hub.add(name, files, branch)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self._json(200, {"commitUrl": url, "commitOid": commit, "success": True})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, status: int, value: object) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """A commit that this user may see; else the refusal is sent."""
        repository = self.hub.repositories.get(name)
        authorization = self.headers.get("Authorization")
        if repository is None or (
            repository.token and authorization != f"Bearer {repository.token}"
        ):
            # The real one does not tell a stranger which of the two it is.
            status = 404 if authorization else 401
            self._send(status, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, repository.commits[commit]

    def _list(self, name: str, revision: str, with_blobs: bool) -> None:
        found = self._files(name, revision)
        if found is None:
            return
        commit, files = found
        siblings: list[dict[str, Any]] = [*map(_entry, files, files.values())]
        for entry in siblings:
            if not self.hub.gives_digests:
                entry.pop("lfs", None)
        if not with_blobs:
            siblings = [{"rfilename": path} for path in files]
        body = {"_id": "0", "id": name, "modelId": name, "sha": commit, "siblings": siblings}
        self._json(200, body)

    def _tree(self, name: str, revision: str) -> None:
        found = self._files(name, revision)
        if found is not None:
            self._json(200, [*map(_entry, found[1], found[1].values())])

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self._files(name, revision)
        if found is None:
            return
        commit, files = found
        headers = {"X-Repo-Commit": commit}
        if self.hub.repositories[name].is_gated:
            self._send(403, b"", headers | {"X-Error-Code": "GatedRepo"})
        elif path not in files:
            self._send(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
        elif path.endswith(LARGE):
            digest = hashlib.sha256(files[path]).hexdigest()
            headers |= {
                "Location": f"{self.hub.store}/store/{name}/{commit}/{path.replace('+', '%2B')}",
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(files[path])),
            }
            self._send(302, b"", headers)
        else:
            self._send(200, files[path], headers | {"ETag": f'"{_git_hash(files[path])}"'})

    def _store(self, path: str) -> None:
        owner, name, commit, place = path.removeprefix("/store/").split("/", 3)
        raw = self.hub.repositories[f"{owner}/{name}"].commits[commit][place]
        raw = raw if self.hub.wrong_bytes is None else self.hub.wrong_bytes
        match = _RANGE.fullmatch(self.headers.get("Range") or "")
        if match is None or not self.hub.knows_ranges:
            self._send(200, raw, may_be_cut=True)
            return
        start, stop = int(match[1]), int(match[2] or len(raw) - 1) + 1
        if start >= len(raw):
            self._send(416, b"", {"Content-Range": f"bytes */{len(raw)}"})
            return
        part = raw[start:stop]
        where = f"bytes {start}-{start + len(part) - 1}/{len(raw)}"
        self._send(206, part, {"Content-Range": where}, may_be_cut=True)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        may_be_cut: bool = False,
    ) -> None:
        hub = self.hub
        # Remembered before it is answered: whoever has the answer looks at once.
        request = Request(
            self.command,
            unquote(self.path),
            self.headers.get("Range"),
            self.headers.get("Authorization"),
        )
        hub.requests.append(request)
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = may_be_cut and hub.cuts_left > 0 and hub.cut_after is not None
        if self.command != "HEAD":
            part = body[: hub.cut_after] if cut else body
            try:
                for start in range(0, len(part), _PIECE):
                    piece = part[start : start + _PIECE]
                    request.sent += len(piece)
                    self.wfile.write(piece)
            except OSError:
                self.close_connection = True  # whoever asked has enough
        if cut:
            hub.cuts_left -= 1
            self.close_connection = True


def _entry(path: str, raw: bytes) -> dict[str, Any]:
    """What lists say of a file, in the words of each of them."""
    hashed = _git_hash(raw)
    entry: dict[str, Any] = {"type": "file", "path": path, "rfilename": path, "size": len(raw)}
    entry |= {"oid": hashed, "blobId": hashed}
    if path.endswith(LARGE):
        digest = hashlib.sha256(raw).hexdigest()
        entry["lfs"] = {"oid": digest, "sha256": digest, "size": len(raw), "pointerSize": 134}
    return entry


def _git_hash(raw: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()  # noqa: S324 - as git
