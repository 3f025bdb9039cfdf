"""A hub on this machine: the endpoints of huggingface.co that its client downloads through, over folders of files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROUTES = {
    "info": re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?"),
    "tree": re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)"),
    "file": re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)"),
}


class FakeHub:
    """Repositories with commits; a dataset's name begins with ``datasets/``, as in the hub's addresses.

    Attributes
    ----------
    url
        What ``HF_ENDPOINT`` is to be.
    asked
        Every request so far: method and path.
    resumed
        Files asked for from a byte on: path and byte.
    gated
        Repositories whose files need the token ``hf_secret``.
    broken
        Paths of files whose connection breaks half-way the first time.
    cut
        Paths of files whose connection breaks half-way, when another file is sent; the hub is closed from then on.
    stalled
        Paths of files of which half is sent, and the rest never.
    announced
        Paths of files that are said to have so many bytes.
    closed
        Every request is refused.
    restless
        Repositories move on whenever somebody looks where they are.
    forgetful
        Every commit that is asked for is answered with the latest.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commits: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str]] = []
        self.resumed: list[tuple[str, int]] = []
        self.gated: set[str] = set()
        self.broken: set[str] = set()
        self.cut: dict[str, str] = {}
        self.sent: set[str] = set()
        self.stalled: set[str] = set()
        self.announced: dict[str, int] = {}
        self.closed = False
        self.restless = False
        self.forgetful = False
        self.half_way = threading.Event()
        self.url = ""

    def commit(self, repo: str, folder: Path) -> str:
        """Take a folder as it is now for the latest commit of a repository; its 40 hexadecimals."""
        before = self.commits.setdefault(repo, [])
        total = hashlib.sha1(f"{repo} {len(before)}".encode())
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                total.update(f"{file.relative_to(folder)} {_etag(file)}".encode())
        shutil.copytree(folder, self.root / repo / total.hexdigest())
        before.append(total.hexdigest())
        return before[-1]

    def environment(self, home: Path) -> dict[str, str]:
        """Environment variables of a process that shall use this hub, with its cache in a folder of its own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return {**kept, **ours, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


@contextmanager
def fake_hub(root: Path) -> Iterator[FakeHub]:
    """Serve a hub from `root` as long as the block lasts."""
    hub = FakeHub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _etag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        if self.hub.closed:
            return self.refuse(403, "")
        for kind, pattern in ROUTES.items():
            if match := pattern.fullmatch(path):
                prefix, name, revision = match[1], match[2], match[3] or "main"
                repo = f"datasets/{name}" if (prefix or "").startswith("datasets") else name
                return self.give(kind, repo, revision, match[4] if kind == "file" else "")
        return self.refuse(404, "")

    def give(self, kind: str, repo: str, revision: str, path: str) -> None:
        commits = self.hub.commits.get(repo)
        if commits is None:
            # As the real one answers those without a token: it does not tell missing and private ones apart.
            return self.refuse(401, "RepoNotFound")
        if revision != "main" and revision not in commits:
            return self.refuse(404, "RevisionNotFound")
        commit = commits[-1] if revision == "main" or self.hub.forgetful else revision
        folder = self.hub.root / repo / commit
        if kind == "info":
            if self.hub.restless:
                self.hub.commit(repo, folder)
            return self.send_json({"id": repo.removeprefix("datasets/"), "sha": commit})
        if kind == "tree":
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            return self.send_json(
                [
                    {
                        "type": "file",
                        "path": file.relative_to(folder).as_posix(),
                        "size": file.stat().st_size,
                        "oid": _etag(file)[:40],
                    }
                    for file in files
                ]
            )
        if repo in self.hub.gated and self.headers.get("Authorization") != "Bearer hf_secret":
            return self.refuse(403, "GatedRepo")
        if not (folder / path).is_file():
            return self.refuse(404, "EntryNotFound")
        return self.send_file(folder / path, path, commit)

    def send_file(self, file: Path, path: str, commit: str) -> None:
        content = file.read_bytes()
        size = len(content)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.hub.resumed.append((path, start))
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(self.hub.announced.get(path, size - start)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{_etag(file)}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "HEAD":
            return
        if path in self.hub.stalled:
            self.wfile.write(content[: size // 2])
            self.wfile.flush()
            self.hub.half_way.set()
            threading.Event().wait(60)
        elif path in self.hub.broken:
            self.hub.broken.remove(path)
            self.wfile.write(content[: size // 2])
            self.close_connection = True
        elif path in self.hub.cut:
            self.wfile.write(content[: size // 2])
            before = self.hub.cut.pop(path)
            while before not in self.hub.sent:
                time.sleep(0.01)
            self.hub.closed = True
            self.close_connection = True
        else:
            self.wfile.write(content[start:])
            self.hub.sent.add(path)

    def send_json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
