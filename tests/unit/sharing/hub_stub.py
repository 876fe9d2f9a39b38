"""A stand-in for the HTTP interface of the Hugging Face Hub: repositories, commits, listings and downloads.

Files travel inside a commit; the real one moves large ones by LFS, which is huggingface_hub's own affair.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Repositories:
    """What the stand-in holds.

    Attributes:
        commits: repository → its states, each path → content; the number of one is its sha.
        refuse: part of a path → the status that is answered.
        before_commit: called before each commit, where it is set.
    """

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.lock = threading.Lock()
        self.refuse: dict[str, int] = {}
        self.before_commit: Any = None

    def head(self, name: str) -> dict[str, bytes]:
        return self.commits[name][-1]


def sha_of(number: int) -> str:
    return f"{number:040x}"


class _Handler(BaseHTTPRequestHandler):
    repositories: Repositories

    def log_message(self, *_: Any) -> None:
        pass

    def _give(self, status: int, body: Any = None, raw: bytes | None = None, **headers: str) -> None:
        content = raw if raw is not None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self, code: str) -> None:
        self._give(404, {"error": code}, **{"X-Error-Code": code, "X-Error-Message": code})

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _act(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        for part, status in self.repositories.refuse.items():
            if part in path:
                return self._give(status, {"error": "refused"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.repositories.commits.setdefault(name, [{}])
            self.repositories.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
            return self._give(200, {"url": f"https://huggingface.co/{name}"})
        if path.startswith("/api/models/"):
            parts = path.removeprefix("/api/models/").split("/")
            name, rest = "/".join(parts[:2]), parts[2:]
            if name not in self.repositories.commits:
                return self._missing("RepoNotFound")
            return self._of_repository(name, rest, body)
        name, _, rest_of = path.lstrip("/").partition("/resolve/")
        revision, _, file = rest_of.partition("/")
        there = self._state(name, revision).get(file) if name in self.repositories.commits else None
        if there is None:
            return self._missing("EntryNotFound")
        about = {"ETag": f'"{hashlib.sha1(there).hexdigest()}"', "X-Repo-Commit": sha_of(0), "Accept-Ranges": "bytes"}
        asked = self.headers.get("range", "")
        if asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = there[int(first) : int(last) + 1 if last else None]
            end = int(first) + len(part) - 1
            about["Content-Range"] = f"bytes {first}-{end}/{len(there)}"
            return self._give(206, raw=part, **about)
        return self._give(200, raw=there, **about)

    do_GET = do_POST = do_HEAD = _act  # noqa: N815  (the names are those of http.server)

    def _state(self, name: str, revision: str) -> dict[str, bytes]:
        states = self.repositories.commits[name]
        return states[-1] if revision == "main" else states[int(revision, 16)]

    def _of_repository(self, name: str, rest: list[str], body: bytes) -> None:
        number = len(self.repositories.commits[name]) - 1
        if not rest or rest[0] == "revision":
            return self._give(200, {"id": name, "sha": sha_of(number), "private": True, "siblings": []})
        if rest[0] == "preupload":
            files = json.loads(body)["files"]
            answer = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self._give(200, {"files": answer})
        state = self._state(name, rest[1])
        if rest[0] == "paths-info":
            raw = body.decode()
            paths = json.loads(raw)["paths"] if raw.startswith("{") else parse_qs(raw)["paths"]
            return self._give(200, [row for path in paths if (row := _entry(state, path))])
        if rest[0] == "tree":
            return self._listed(state, "/".join(rest[2:]))
        if rest[0] == "commit":
            return self._commit(name, body)
        return self._missing("EntryNotFound")

    def _listed(self, state: dict[str, bytes], folder: str) -> None:
        inside = f"{folder}/" if folder else ""
        below = [path.removeprefix(inside) for path in state if path.startswith(inside)]
        if folder and not below:
            return self._missing("EntryNotFound")
        deep = parse_qs(urlsplit(self.path).query).get("recursive", ["False"])[0].lower() == "true"
        names = {path if deep else path.split("/")[0] for path in below}
        return self._give(200, [_entry(state, inside + one) for one in sorted(names)])

    def _commit(self, name: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        if self.repositories.before_commit is not None:
            self.repositories.before_commit()
        with self.repositories.lock:
            states = self.repositories.commits[name]
            wanted = next(line["value"] for line in lines if line["key"] == "header").get("parentCommit")
            if wanted not in (None, sha_of(len(states) - 1)):
                return self._give(412, {"error": "A commit has happened since. Please refresh and try again."})
            new = dict(states[-1])
            for line in lines:
                if line["key"] == "file":
                    new[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    new.pop(line["value"]["path"])
            states.append(new)
            where = f"https://huggingface.co/{name}/commit/{sha_of(len(states) - 1)}"
            return self._give(200, {"commitUrl": where, "commitOid": sha_of(len(states) - 1), "success": True})


def _entry(state: dict[str, bytes], path: str) -> dict[str, Any] | None:
    if path in state:
        oid = hashlib.sha1(state[path]).hexdigest()
        return {"type": "file", "path": path, "size": len(state[path]), "oid": oid}
    if any(one.startswith(f"{path}/") for one in state):
        return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
    return None


@contextmanager
def hub_server() -> Iterator[tuple[str, Repositories]]:
    """The stand-in on a free port: its address, and what it holds."""
    repositories = Repositories()
    handler = type("Handler", (_Handler,), {"repositories": repositories, "protocol_version": "HTTP/1.1"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", repositories
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
