"""The review page over HTTP, for this machine alone: static files of one folder, and decisions that are saved."""

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from amn_fast.errors import InputError
from amn_fast.review.decisions import Decision, check_decision, read_decisions, write_decisions
from amn_fast.review.page import Page, decisions_script

MOST_BYTES = 16 << 20
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".jpg": "image/jpeg"}
_POLICY = "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"  # noqa: E501  # fmt: skip


def make_server(page: Page, port: int = 0) -> ThreadingHTTPServer:
    """A server of `page` on 127.0.0.1; `serve_forever` runs it, and `server_port` is its port.

    It answers requests for its own address alone (a page of another site, or another name for this machine, gets 403),
    serves only files that belong to the page, and saves decisions atomically.

    Args:
        port: 0 takes any free port.

    Raises:
        InputError: the port is taken, or decisions.json is damaged.
    """
    decided = read_decisions(page.decisions) if page.decisions.exists() else {}
    handler = type("Handler", (_Handler,), {"page": page, "decided": decided, "lock": threading.Lock()})
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        raise InputError(f"port {port} cannot be used: {error}; pass another one, or 0 for any") from error
    server.daemon_threads = True
    return server


class _Handler(BaseHTTPRequestHandler):
    page: Page
    decided: dict[str, Decision]
    lock: threading.Lock
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        name = self.path.split("?")[0].removeprefix("/") or "index.html"
        if name == "decisions.js":
            with self.lock:
                self._answer(HTTPStatus.OK, decisions_script(self.decided).encode(), ".js")
            return
        path = self.page.folder / name
        if not _is_page_file(name) or not path.is_file():
            self._answer(HTTPStatus.NOT_FOUND, b"not found")
            return
        self._answer(HTTPStatus.OK, path.read_bytes(), path.suffix)

    def do_POST(self) -> None:
        """Save the decisions in the body, {id: decision, or null to remove it}; all of them or none."""
        if not self._is_ours():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/decisions" or self.headers.get("Content-Type") != "application/json":
            self._refuse(HTTPStatus.BAD_REQUEST, "expected JSON for /decisions")
            return
        if not length.isascii() or not length.isdigit() or int(length) > MOST_BYTES:
            self._refuse(HTTPStatus.BAD_REQUEST, f"expected a length of at most {MOST_BYTES} bytes")
            return
        try:
            changes = self._read_changes(self.rfile.read(int(length)))
        except InputError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        with self.lock:
            merged = {**self.decided, **changes}
            merged = {id: entry for id, entry in merged.items() if entry is not None}
            try:
                write_decisions(self.page.decisions, merged)
            except OSError as error:
                self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, f"{error.filename}: {error.strerror}")
                return
            type(self).decided = merged
        self._answer(HTTPStatus.OK, b"saved")

    def _read_changes(self, body: bytes) -> dict[str, Any]:
        try:
            changes = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the body is not JSON: {error}") from error
        if not isinstance(changes, dict):
            raise InputError("the body is not an object of decisions")
        known = set(self.page.ids)
        for id, entry in changes.items():
            if id not in known:
                raise InputError(f"there is no image {id!r:.80}")
            if entry is not None:
                check_decision(entry, f"image {id!r}")
        return changes

    def _is_ours(self) -> bool:
        """Whether the request is for this server by its own name, and from its own page; answers it if not."""
        assert isinstance(self.server, ThreadingHTTPServer)
        hosts = {f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in hosts and (origin is None or origin.removeprefix("http://") in hosts):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, "this server answers its own page only")
        return False

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # the body may not have been read
        self._answer(status, reason.encode())

    def _answer(self, status: HTTPStatus, body: bytes, suffix: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", _TYPES.get(suffix, "text/plain; charset=utf-8"))
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store" if suffix != ".jpg" else "no-cache")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not printed."""


def _is_page_file(name: str) -> bool:
    """Whether `name` is one of the files that the page consists of; no other path is ever opened."""
    if name in ("index.html", "data.js"):
        return True
    folder, _, file = name.partition("/")
    stem, _, suffix = file.partition(".")
    return (folder, suffix) in {("thumbs", "jpg"), ("maps", "js")} and stem.isascii() and stem.isalnum()


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}/"


def folder_address(folder: Path) -> str:
    return (folder.resolve() / "index.html").as_uri()
