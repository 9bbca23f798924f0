"""Kaggle's API on this machine, for tests: what the official client asks for, and ways to fail.

The client needs no change: with KAGGLE_API_ENVIRONMENT=LOCALHOST it asks `http://localhost`, and
with HTTP_PROXY it asks this server for that. So the server sees whole addresses in its request
lines; uploads and downloads pass through it, too.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

USER, KEY, TOKEN = "alice", "not-a-real-key-5f2a", "not-a-real-token-9c1e"


class FakeKaggle(ThreadingHTTPServer):
    """Answers for one account.

    Attributes:
        calls: (method of the API or of HTTP, body) of all that was asked for.
        answers: by method of the API, what the next calls get instead: (status, body), and
            headers after them if need be.
        datasets: content of the current version by OWNER/SLUG, a file's bytes by its name.
        statuses: by OWNER/SLUG, what GetDatasetStatus says next; READY when it is used up.
        late: OWNER/SLUGs whose next version shows up after one more GetDatasetStatus.
        lost: names of files that are uploaded well and then left out.
        uploads: by name, the statuses that the next uploads end with instead of 200; 503 keeps
            half of the bytes.
        kernels: what SaveKernel got, by OWNER/SLUG; the position is the version less 1.
        runs: (state, failure message) of the kernel's run, one a question; the last one stays.
        outputs: (name, bytes) of what the run wrote.
        page: outputs on a page.
        submissions: entries of the list, newest first; None: submitting changes nothing.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[tuple[str, dict]] = []
        self.answers: dict[str, list[tuple]] = {}
        self.datasets: dict[str, dict[str, bytes]] = {}
        self.statuses: dict[str, list[str]] = {}
        self.late: set[str] = set()
        self.lost: set[str] = set()
        self.uploads: dict[str, list[int]] = {}
        self.kernels: dict[str, list[dict]] = {}
        self.runs: list[tuple[str, str]] = [("COMPLETE", "")]
        self.outputs: list[tuple[str, bytes]] = []
        self.page = 200
        self.submissions: list[dict] | None = []
        self.tokens: dict[str, tuple[str, int, bytearray]] = {}
        self.waiting: dict[str, dict[str, bytes]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, folder: Path) -> dict[str, str]:
        """Variables with which the client asks this server, and keeps its files in `folder`."""
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_CONFIG_DIR": str(folder),
            "KAGGLE_USERNAME": USER,
            "KAGGLE_KEY": KEY,
            "HOME": str(folder),
            "USERPROFILE": str(folder),
            "TMPDIR": str(folder),
            "HTTP_PROXY": self.address,
            "HTTPS_PROXY": self.address,
            "http_proxy": self.address,
            "https_proxy": self.address,
            "NO_PROXY": "",
            "no_proxy": "",
        }

    def called(self, method: str) -> list[dict]:
        """Bodies of all calls of one method."""
        return [body for name, body in self.calls if name == method]

    def handle_error(self, request, client_address) -> None:
        """Say nothing of clients that left."""

    # The methods of the API: the body of a request in, the body of the answer out.

    def introspect_token(self, body: dict) -> dict:
        return {"active": True, "username": USER} if body["token"] == TOKEN else {}

    def save_kernel(self, body: dict) -> dict:
        versions = self.kernels.setdefault(body["slug"], [])
        versions.append(body)
        url = f"https://www.kaggle.com/code/{body['slug']}"
        return {"ref": f"/code/{body['slug']}", "url": url, "versionNumber": len(versions)}

    def get_kernel_session_status(self, body: dict) -> dict:
        state, message = self.runs.pop(0) if len(self.runs) > 1 else self.runs[0]
        return {"status": state, "failureMessage": message}

    def list_kernel_session_output(self, body: dict) -> dict:
        start = int(body.get("pageToken") or 0)
        files = [
            {"url": f"{self.address}/output/{quote(name, safe='')}", "fileName": name}
            for name, _ in self.outputs[start : start + self.page]
        ]
        rest = start + self.page < len(self.outputs)
        return {
            "files": files,
            "log": '[{"stream_name": "stdout", "time": 1.0, "data": "done"}]',
            "nextPageToken": str(start + self.page) if rest else "",
        }

    def get_dataset_status(self, body: dict) -> dict:
        ref = f"{body['ownerSlug']}/{body['datasetSlug']}"
        if ref not in self.datasets and ref not in self.waiting:
            raise _Refused(403, "Permission 'datasets.get' was denied")
        if ref in self.late:
            self.late.remove(ref)
            return {"status": "READY"}
        if self.statuses.get(ref):
            return {"status": self.statuses[ref].pop(0)}
        self.datasets[ref] = self.waiting.pop(ref, None) or self.datasets[ref]
        return {"status": "READY"}

    def list_dataset_files(self, body: dict) -> dict:
        names = sorted(self.datasets[f"{body['ownerSlug']}/{body['datasetSlug']}"])
        start = int(body.get("pageToken") or 0)
        rest = start + 2 < len(names)
        return {
            "datasetFiles": [{"name": name} for name in names[start : start + 2]],
            "nextPageToken": str(start + 2) if rest else "",
        }

    def create_dataset(self, body: dict) -> dict:
        return self._take(f"{body['ownerSlug']}/{body['slug']}", body["files"])

    def create_dataset_version(self, body: dict) -> dict:
        ref = f"{body['ownerSlug']}/{body['datasetSlug']}"
        return self._take(ref, body["body"]["files"])

    def _take(self, ref: str, files: list[dict]) -> dict:
        named = [self.tokens[file["token"]] for file in files]
        kept = {name: bytes(data) for name, _, data in named if name not in self.lost}
        self.waiting[ref] = kept
        return {"ref": ref, "url": f"https://www.kaggle.com/datasets/{ref}", "status": "ok"}

    def start_blob_upload(self, body: dict) -> dict:
        token = f"token-{len(self.tokens)}"
        self.tokens[token] = (body["name"], body.get("contentLength", 0), bytearray())
        return {"token": token, "createUrl": f"{self.address}/upload/{token}"}

    def create_code_submission(self, body: dict) -> dict:
        if self.submissions is None:
            return {"message": "The notebook's version has no such output file"}
        entry = {
            "ref": 100 + len(self.submissions),
            "fileName": body["fileName"],
            "description": body["submissionDescription"],
            "status": "PENDING",
        }
        self.submissions.insert(0, entry)
        return {"message": "Successfully submitted", "ref": entry["ref"]}

    def list_submissions(self, body: dict) -> dict:
        return {"submissions": self.submissions or []}


class _Refused(Exception):
    """An answer with an error's status."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # 40 ms an answer

    def log_message(self, *args) -> None:
        pass

    def do_CONNECT(self) -> None:  # noqa: N802
        """Somebody wants to reach the real network through the proxy."""
        self.server.calls.append(("CONNECT", {"to": self.path}))
        self._send(403, b"")

    def do_POST(self) -> None:  # noqa: N802
        kaggle: FakeKaggle = self.server
        address = urlsplit(self.path)
        method = address.path.rpartition("/")[2]
        body = json.loads(self._read() or b"{}")
        kaggle.calls.append((method, body))
        basic = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
        logins = (f"Basic {basic}", f"Bearer {TOKEN}")
        if address.netloc != "localhost" or not address.path.startswith("/api/v1/"):
            return self._json(404, {"message": f"not for Kaggle: {self.path}"})
        if kaggle.answers.get(method):
            return self._json(*kaggle.answers[method].pop(0))
        if self.headers.get("Authorization") not in logins and method != "IntrospectToken":
            return self._json(401, {"code": 401, "message": "Unauthenticated"})
        if method == "DownloadDataset":
            ref = f"{body['ownerSlug']}/{body['datasetSlug']}"
            place = f"{kaggle.address}/dataset/{ref}/{body['fileName']}"
            return self._send(302, b"", Location=place)
        answer = getattr(kaggle, re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower())
        try:
            return self._json(200, answer(body))
        except _Refused as refused:
            code, message = refused.args
            return self._json(code, {"code": code, "message": message})

    def do_GET(self) -> None:  # noqa: N802
        kaggle: FakeKaggle = self.server
        _, kind, rest = urlsplit(self.path).path.split("/", 2)
        kaggle.calls.append(("GET", {"path": self.path}))
        if kind == "output":
            found = dict(kaggle.outputs).get(unquote(rest))
        else:
            ref, _, name = rest.rpartition("/")
            found = kaggle.datasets[ref].get(name)
        return self._send(404, b"") if found is None else self._send(200, found)

    def do_PUT(self) -> None:  # noqa: N802
        """A resumable upload: `bytes */N` asks how much is there, `bytes A-B/N` goes on at A."""
        kaggle: FakeKaggle = self.server
        name, size, data = kaggle.tokens[self.path.rpartition("/")[2]]
        asked = self.headers.get("Content-Range", "")
        sent = self._read()
        kaggle.calls.append(("PUT", {"name": name, "range": asked, "bytes": len(sent)}))
        if not asked.startswith("bytes */"):
            start = int(re.match(r"bytes (\d+)", asked)[1]) if asked else 0
            status = kaggle.uploads[name].pop(0) if kaggle.uploads.get(name) else 200
            data[start:] = sent[: len(sent) // 2] if status == 503 else sent
            if status != 200:
                return self._send(status, b"")
        if len(data) == size:
            return self._send(200, b"{}")
        return self._send(308, b"", **({"Range": f"bytes=0-{len(data) - 1}"} if data else {}))

    def _read(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _json(self, status: int, body: dict, headers: dict | None = None) -> None:
        content = json.dumps(body).encode()
        self._send(status, content, **{"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def fake_kaggle() -> Iterator[FakeKaggle]:
    """An API that answers while the block runs."""
    kaggle = FakeKaggle()
    thread = threading.Thread(target=kaggle.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield kaggle
    finally:
        kaggle.shutdown()
        thread.join()
        kaggle.server_close()
