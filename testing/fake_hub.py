"""A Hugging Face hub on this machine, for ``HF_ENDPOINT``: what downloads ask of it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 39 + "1"


@dataclass
class FakeHub:
    """``repositories``: the folder of each repository. ``gated``: those that need ``token``.

    ``requests`` are the paths that were asked for; ``failing`` are files
    that answer 501, which clients don't repeat.
    """

    repositories: Mapping[str, Path]
    revisions: tuple[str, ...] = ("main", COMMIT)
    gated: frozenset[str] = frozenset()
    token: str = "hf_secret"
    failing: frozenset[str] = frozenset()
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str, authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body."""
        self.requests.append(path)
        is_api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        repository, (verb, revision, *rest) = "/".join(parts[:2]), (*parts[2:], "", "")
        if repository not in self.repositories:
            return _refuse(401, "RepoNotFound")
        if repository in self.gated and authorization != f"Bearer {self.token}":
            return _refuse(403, "GatedRepo")
        if revision not in self.revisions:
            return _refuse(404, "RevisionNotFound")
        folder = self.repositories[repository]
        if is_api and verb == "revision":
            return _json({"id": repository, "sha": COMMIT, "siblings": []})
        if is_api and verb == "tree":
            return _json([_describe(folder, file) for file in _files(folder)])
        return self._answer_file(folder, "/".join(rest).strip("/"))

    def _answer_file(self, folder: Path, name: str) -> tuple[int, dict[str, str], bytes]:
        if name in self.failing:
            return _refuse(501, "")
        if not (folder / name).is_file():
            return _refuse(404, "EntryNotFound")
        body = (folder / name).read_bytes()
        return 200, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}, body


def _refuse(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code} if code else {}, b""


def _json(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _describe(folder: Path, file: Path) -> dict[str, object]:
    body = file.read_bytes()
    return {
        "type": "file",
        "path": str(file.relative_to(folder)),
        "size": len(body),
        "oid": hashlib.sha1(body).hexdigest(),
    }


@contextmanager
def run_hub(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve the hub on a free port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            status, headers, body = hub.answer(path, self.headers.get("Authorization"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
