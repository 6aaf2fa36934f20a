"""A Hugging Face hub on this machine: the few of its addresses that `synth push` and
`Generator.from_pretrained` ask for, as huggingface_hub calls them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_stub"
COMMIT = "c" * 40


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """What the stub holds. `repositories` has keys such as `datasets/ann/digits`."""

    endpoint: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # by sha256, for large files
    large: str = r"$^"  # of names of files that go the way of large ones
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)  # address → status, message
    asked: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def handle_any(self) -> None:
        body = self.read_body()
        path = self.path.split("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        told = [answer for part, answer in self.hub.answers.items() if part in path]
        if told:
            return self.refuse(*told[0])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and not path.startswith("/lfs/"):
            return self.refuse(401, "Invalid username or password.")
        for pattern, method in ROUTES:
            found = re.fullmatch(pattern, f"{self.command} {path}")
            if found:
                return getattr(self, method)(body, *found.groups())
        self.refuse(404, f"the stub knows no {self.command} {path}")

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def refuse(self, status: int, message: str) -> None:
        self.answer({"error": message}, status, {"X-Error-Message": message})

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def create(self, body: bytes) -> None:
        told = json.loads(body)
        kind = told.get("type", "model")
        name = f"{'datasets/' * (kind == 'dataset')}{told['organization']}/{told['name']}"
        private = told.get("private") or told.get("visibility") == "private"
        status = 409 if name in self.hub.repositories else 200
        self.hub.repositories.setdefault(name, Repository(bool(private)))
        self.answer({"url": f"{self.hub.endpoint}/{name}"}, status)

    def tell(self, body: bytes, kind: str, name: str) -> None:
        found = self.find(kind, name)
        told = {"id": name, "private": found.private, "sha": COMMIT, "tags": []}
        self.answer({**told, "siblings": [], "downloads": 0, "likes": 0})

    def find(self, kind: str, name: str) -> Repository:
        return self.hub.repositories["datasets/" * (kind == "datasets") + name]

    def accept_card(self, body: bytes) -> None:
        self.answer({"errors": [], "warnings": []})

    def sort(self, body: bytes, kind: str, name: str) -> None:
        names = [file["path"] for file in json.loads(body)["files"]]
        modes = {n: "lfs" if re.search(self.hub.large, n) else "regular" for n in names}
        sorted_files = [{"path": n, "uploadMode": modes[n], "shouldIgnore": False} for n in names]
        self.answer({"files": sorted_files})

    def batch(self, body: bytes) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, body: bytes, digest: str) -> None:
        assert hashlib.sha256(body).hexdigest() == digest
        self.hub.stored[digest] = body
        self.answer({})

    def commit(self, body: bytes, kind: str, name: str) -> None:
        found = self.find(kind, name)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                found.messages.append(value["summary"])
            elif line["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                found.files[value["path"]] = self.hub.stored[value["oid"]]
        address = f"{self.hub.endpoint}/{name}/commit/{COMMIT}"
        self.answer({"commitUrl": address, "commitOid": COMMIT, "success": True})

    def resolve(self, body: bytes, name: str, file: str) -> None:
        found = self.hub.repositories.get(name)
        if found is None:
            return self.answer({}, 404, {"X-Error-Code": "RepoNotFound"})
        if file not in found.files:
            return self.answer({}, 404, {"X-Error-Code": "EntryNotFound"})
        data = found.files[file]
        tag = hashlib.sha1(data).hexdigest()
        self.answer(data, headers={"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})


ANY = r"(models|datasets)/([\w.-]+/[\w.-]+)"
ROUTES = (
    (r"POST /api/repos/create", "create"),
    (rf"GET /api/{ANY}", "tell"),
    (r"POST /api/validate-yaml", "accept_card"),
    (rf"POST /api/{ANY}/preupload/main", "sort"),
    (r"POST /.*\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /lfs/(\w+)", "store"),
    (rf"POST /api/{ANY}/commit/main", "commit"),
    (r"(?:HEAD|GET) /([\w.-]+/[\w.-]+)/resolve/main/(.+)", "resolve"),
)


@contextmanager
def running() -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    Handler.hub = hub
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
