"""A hub of our own on this machine: what huggingface_hub asks of the real one, over HTTP, with faults on request."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
LARGE = 2000  # bytes from which a file is listed with a sha256, as LFS does
FOREVER = 200 << 20  # bytes


@dataclass
class Hub:
    """What is served, and how it misbehaves."""

    files: dict[str, bytes]
    repo: str = "lab/mugs"
    endpoint: str = ""
    sha: dict[str, str] = field(default_factory=lambda: dict(COMMITS))
    served: dict[str, bytes] = field(default_factory=dict)  # other bytes than those that are listed
    listed: list[dict[str, Any]] = field(default_factory=list)  # further entries of the listing
    gone_after: int | None = None  # downloads before the hub answers 403
    endless: str | None = None  # a file whose bytes do not end
    sent: int = 0  # bytes of it
    downloads: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)

    def entry(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        values: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
        if len(data) >= LARGE:
            values["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return values

    def info(self, revision: str) -> dict[str, Any]:
        siblings = [self.entry(name) for name in sorted(self.files)] + self.listed
        about = {
            "id": self.repo,
            "author": "lab",
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
        }
        return {**about, "sha": self.sha[revision], "siblings": siblings}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            question, download = f"/api/datasets/{hub.repo}", f"/datasets/{hub.repo}/resolve/"
            if path.startswith(question):
                revision = path.removeprefix(question).removeprefix("/revision/") or "main"
                hub.questions.append(revision)
                if revision in hub.sha:
                    return self.answer(200, json.dumps(hub.info(revision)).encode(), {"Content-Type": "application/json"})
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if path.startswith(download):
                commit, _, name = path.removeprefix(download).partition("/")
                if name in hub.files or name in hub.served:
                    return self.download(commit, name)
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def download(self, commit: str, name: str) -> None:
            if self.command == "GET":
                if hub.gone_after is not None and len(hub.downloads) >= hub.gone_after:
                    return self.answer(403, b"", {})
                hub.downloads.append(name)
            data = hub.served.get(name, hub.files.get(name, b""))
            if name == hub.endless and self.command == "GET":
                return self.go_on(commit)
            return self.answer(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit})

        def go_on(self, commit: str) -> None:
            self.send_response(200)
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            with contextlib.suppress(OSError):
                while hub.sent < FOREVER:
                    hub.sent += self.wfile.write(bytes(1 << 20))

        do_HEAD = do_GET

    return Handler


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
