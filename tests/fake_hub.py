"""A model hub on this machine, for tests: what huggingface_hub asks for, and ways to fail."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FakeHub(ThreadingHTTPServer):
    """Serves folders as repositories at one commit each.

    Attributes:
        repositories: folder by OWNER/NAME.
        commits: by OWNER/NAME; `main` leads to it, too.
        requests: (method, path, range) of all that was asked for.
        failures: statuses that the next requests are answered with.
        break_off: by file name, after how many bytes a transfer breaks off, once.
        served: bytes of files sent, by name.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Path] = {}
        self.commits: dict[str, str] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.failures: list[int] = []
        self.break_off: dict[str, int] = {}
        self.served: dict[str, int] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repository: str, folder: Path, commit: str = "") -> str:
        """Publish a folder; returns its commit."""
        self.repositories[repository] = folder
        self.commits[repository] = commit or hashlib.sha1(repository.encode()).hexdigest()
        return self.commits[repository]

    def handle_error(self, request, client_address) -> None:
        """Say nothing of clients that left."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802
        self._answer(body=True)

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer(body=False)

    def log_message(self, *args) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        hub: FakeHub = self.server
        path = self.path.partition("?")[0]
        hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if hub.failures:
            return self._refuse(hub.failures.pop(0))
        for repository, folder in hub.repositories.items():
            commit = hub.commits[repository]
            for kind in ("revision", "tree"):
                start = f"/api/models/{repository}/{kind}/"
                if path.startswith(start):
                    if path.removeprefix(start) not in ("main", commit):
                        return self._refuse(404, "RevisionNotFound")
                    names = sorted(file.name for file in folder.iterdir())
                    if kind == "tree":
                        rows = [self._row(folder / name) for name in names]
                        return self._send(json.dumps(rows).encode())
                    siblings = [{"rfilename": name} for name in names]
                    answer = {"id": repository, "modelId": repository, "sha": commit}
                    return self._send(json.dumps(answer | {"siblings": siblings}).encode())
            start = f"/{repository}/resolve/"
            if path.startswith(start):
                revision, _, name = path.removeprefix(start).partition("/")
                if revision not in ("main", commit):
                    return self._refuse(404, "RevisionNotFound")
                if not (folder / name).is_file():
                    return self._refuse(404, "EntryNotFound")
                return self._file(folder / name, commit, body=body)
        return self._refuse(404, "RepoNotFound")

    def _row(self, file: Path) -> dict:
        oid = hashlib.sha1(file.read_bytes()).hexdigest()
        return {"type": "file", "oid": oid, "size": file.stat().st_size, "path": file.name}

    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _refuse(self, status: int, code: str = "") -> None:
        codes = {401: "GatedRepo", 403: "GatedRepo"}
        code = code or codes.get(status, "")
        self._send(b'{"error": "refused"}', status, **({"X_Error_Code": code} if code else {}))

    def _file(self, file: Path, commit: str, *, body: bool) -> None:
        hub: FakeHub = self.server
        content = file.read_bytes()
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not body:
            return
        end = min(len(content), start + hub.break_off.pop(file.name, len(content)))
        self.wfile.write(content[start:end])
        hub.served[file.name] = hub.served.get(file.name, 0) + end - start
        if end < len(content):
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that runs while the block does."""
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
