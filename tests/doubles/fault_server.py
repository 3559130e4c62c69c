"""Both hubs on this machine, with a second server behind them for large files, and every fault they can have.

``FaultyHub`` serves one repository as Hugging Face and as ModelScope do: listings, addresses of files, and a
redirect to another origin for what is large. A fault is a word in ``faults``, taken by the next request for
a file, or in ``always``, which holds for all of them. Every request is kept in ``requests``.
"""

import hashlib
import http.server
import json
import re
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["COMMIT", "MODEL", "PIECE_BYTES", "WEIGHTS", "FaultyHub", "Seen", "serve_hub"]

MODEL = "baichuan2-7b-base"
WEIGHTS = "pytorch_model.bin"
PIECE_BYTES = 8 << 10
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 2048
"""Bytes from which a file is large, so that it lies behind a redirect and has a sha256 in the listing."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    server: str
    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str:
        return self.headers.get("range", "")


@dataclass
class FaultyHub:
    """What both hubs serve, how they fail, and what was asked of them."""

    files: dict[str, bytes]
    faults: deque[str] = field(default_factory=deque[str])
    """Words for the next requests for files: a key of ``_FAULTS``, or a status, "429 7" with a wait."""
    always: str = ""
    listing_faults: deque[str] = field(default_factory=deque[str])
    tamper: Callable[[Rows], Rows] = field(default=lambda rows: rows)
    """Changes the rows of a listing."""
    after_bytes: Callable[[str, bytes], None] = field(default=lambda name, sent: None)
    """Called when a file was sent whole or in part; may change ``files``."""
    requests: list[Seen] = field(default_factory=list[Seen])
    released: threading.Event = field(default_factory=threading.Event)
    """Set at the end, so that stalled answers do not keep threads."""
    is_linked_etag_sent: bool = True
    hub_url: str = ""
    cdn_url: str = ""

    def requests_for(self, server: str, name: str) -> list[Seen]:
        """Return the requests for a file that one of the servers has received."""
        return [seen for seen in list(self.requests) if seen.server == server and name in unquote(seen.path)]

    def next_fault(self) -> str:
        try:
            return self.faults.popleft()
        except IndexError:
            return self.always

    def huggingface_rows(self) -> Rows:
        rows: Rows = [{"type": "directory", "path": "media", "oid": "0" * 40, "size": 0}]
        for name, content in self.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            row: dict[str, Any] = {"type": "file", "path": name, "oid": git, "size": len(content)}
            if len(content) >= LARGE:
                row["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
            rows.append(row)
        return self.tamper(rows)

    def modelscope_rows(self) -> Rows:
        rows: Rows = [{"Type": "tree", "Path": "media", "Name": "media", "Size": 0}]
        for name, content in self.files.items():
            rows.append(
                {"Type": "blob", "Path": name, "Name": name, "Size": len(content), "Sha256": sha256(content)}
            )
        return self.tamper(rows)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Parts of an answer that both servers share."""

    protocol_version = "HTTP/1.1"
    server_name = ""

    def __init__(self, hub: FaultyHub, *connection: Any) -> None:
        self.hub = hub
        super().__init__(*connection)

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append(Seen(self.server_name, self.path, headers))
        self.route()

    def route(self) -> None:
        raise NotImplementedError

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, words: str) -> None:
        """Answer with a status, and with how long to wait if a second word says so."""
        status, _, wait = words.partition(" ")
        self.answer(int(status), b"no", {"Retry-After": wait} if wait else {})

    def send_file(self, name: str) -> None:
        """Answer with the range that was asked for, or fail as the next fault says."""
        fault = self.hub.next_fault()
        if fault[:1].isdigit():
            self.refuse(fault)
            return
        sender = _Sender(self, self.hub, name)
        try:
            _FAULTS[fault](sender)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        self.hub.after_bytes(name, sender.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Keep the server silent."""


class _HubHandler(_Handler):
    server_name = "hub"

    def route(self) -> None:
        parts = urlsplit(self.path)
        if self.hub.listing_faults and "/resolve/" not in self.path and "FilePath" not in self.path:
            fault = self.hub.listing_faults.popleft()
            if fault == "html":
                self.answer(200, b"<html>a login page</html>")
            elif fault == "endless":
                self.answer(200, b" " * (9 << 20))
            else:
                self.refuse(fault)
        elif match := re.fullmatch(r"/api/models/[^/]+/[^/]+/revision/(.+)", parts.path):
            self.answer_json({"sha": COMMIT, "id": match[1]})
        elif re.fullmatch(rf"/api/models/[^/]+/[^/]+/tree/{COMMIT}", parts.path):
            self.answer_json(self.hub.huggingface_rows())
        elif re.fullmatch(r"/api/v1/models/[^/]+/[^/]+/repo/files", parts.path):
            self.answer_json({"Code": 200, "Success": True, "Data": {"Files": self.hub.modelscope_rows()}})
        elif match := re.fullmatch(rf"/[^/]+/[^/]+/resolve/{COMMIT}/(.+)", parts.path):
            self.send_or_redirect(unquote(match[1]))
        elif re.fullmatch(r"/api/v1/models/[^/]+/[^/]+/repo", parts.path):
            self.send_or_redirect(parse_qs(parts.query)["FilePath"][0])
        else:
            self.answer(HTTPStatus.NOT_FOUND, b"", {"X-Error-Message": "Repository not found"})

    def send_or_redirect(self, name: str) -> None:
        content = self.hub.files.get(name)
        if content is None:
            self.answer(HTTPStatus.NOT_FOUND)
        elif len(content) < LARGE:
            self.send_file(name)
        else:
            headers = {"Location": f"{self.hub.cdn_url}/{name}?Signature=secret"}
            if self.hub.is_linked_etag_sent:
                headers["X-Linked-Etag"] = f'"{sha256(content)}"'
            self.answer(HTTPStatus.FOUND, b"", headers)


class _CdnHandler(_Handler):
    server_name = "cdn"

    def route(self) -> None:
        self.send_file(urlsplit(self.path).path.removeprefix("/"))


class _Sender:
    """One answer with bytes of a file."""

    def __init__(self, handler: _Handler, hub: FaultyHub, name: str) -> None:
        self.handler = handler
        self.hub = hub
        self.content = hub.files[name]
        self.size = len(self.content)
        self.range = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        self.start = int(self.range[1]) if self.range else 0
        self.stop = min(int(self.range[2]) + 1, self.size) if self.range else self.size
        self.body = self.content[self.start : self.stop]

    def head(self, status: int, length: int | None, content_range: str | None = None, **more: str) -> None:
        self.handler.send_response(status)
        if length is not None:
            self.handler.send_header("Content-Length", str(length))
        if content_range:
            self.handler.send_header("Content-Range", content_range)
        self.handler.send_header("ETag", f'"{sha256(self.content)[:32]}"')
        for name, value in more.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()

    def partial(self, body: bytes, *, length: int | None = None, **more: str) -> None:
        """Answer with the range that was asked for and some bytes."""
        length = len(self.body) if length is None else length
        self.head(206, length, f"bytes {self.start}-{self.stop - 1}/{self.size}", **more)
        self.write(body)

    def write(self, body: bytes) -> None:
        self.handler.wfile.write(body)
        self.handler.wfile.flush()

    def end(self) -> None:
        self.handler.close_connection = True

    def right(self) -> None:
        if self.range:
            self.partial(self.body)
        else:
            self.head(200, self.size)
            self.write(self.content)

    def drop(self) -> None:
        self.partial(self.body[: (len(self.body) + 1) // 2])
        self.end()

    def drop_at_once(self) -> None:
        self.end()

    def reset(self) -> None:
        self.partial(self.body[: (len(self.body) + 1) // 2])
        connection = self.handler.connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.end()

    def ignore_range(self) -> None:
        self.head(200, self.size)
        self.write(self.content)

    def ignore_range_and_drop(self) -> None:
        self.head(200, self.size)
        self.write(self.content[: self.size // 2])
        self.end()

    def whole_of_another_size(self) -> None:
        self.head(200, self.size - 1)
        self.write(self.content[:-1])

    def shifted_range(self) -> None:
        body = self.content[self.start + 1 : self.stop + 1]
        self.head(206, len(body), f"bytes {self.start + 1}-{self.start + len(body)}/{self.size}")
        self.write(body)

    def no_range_given(self) -> None:
        self.head(206, len(self.body))
        self.write(self.body)

    def garbled_range(self) -> None:
        self.head(206, len(self.body), "bytes all of it")
        self.write(self.body)

    def wrong_bytes_of_right_range(self) -> None:
        self.partial(self.content[::-1][self.start : self.stop])

    def too_few(self) -> None:
        self.partial(self.body[:-1], length=len(self.body) - 1)

    def too_many(self) -> None:
        self.head(206, None, f"bytes {self.start}-{self.stop - 1}/{self.size}", Transfer_Encoding="chunked")
        for block in (self.body, b"and more"):
            self.write(b"%x\r\n%s\r\n" % (len(block), block))
        self.write(b"0\r\n\r\n")

    def truncated_file(self) -> None:
        half = self.size // 2
        stop = min(self.stop, half)
        if self.start >= half:
            self.head(416, 0, f"bytes */{half}")
            return
        body = self.content[self.start : stop]
        self.head(206, len(body), f"bytes {self.start}-{stop - 1}/{half}")
        self.write(body)

    def stall_at_once(self) -> None:
        self.partial(b"")
        self.hub.released.wait(60)
        self.end()

    def stall(self) -> None:
        self.partial(self.body[: (len(self.body) + 1) // 2])
        self.hub.released.wait(60)
        self.end()

    def flip(self) -> None:
        self.partial(bytes([self.body[0] ^ 1]) + self.body[1:])

    def encoded(self) -> None:
        self.partial(self.body, Content_Encoding="gzip")


_FAULTS: dict[str, Callable[[_Sender], None]] = {
    "": _Sender.right,
    "drop": _Sender.drop,
    "drop at once": _Sender.drop_at_once,
    "reset": _Sender.reset,
    "ignore range": _Sender.ignore_range,
    "ignore range and drop": _Sender.ignore_range_and_drop,
    "whole of another size": _Sender.whole_of_another_size,
    "shifted range": _Sender.shifted_range,
    "no range given": _Sender.no_range_given,
    "garbled range": _Sender.garbled_range,
    "wrong bytes": _Sender.wrong_bytes_of_right_range,
    "too few": _Sender.too_few,
    "too many": _Sender.too_many,
    "truncated file": _Sender.truncated_file,
    "stall": _Sender.stall,
    "stall at once": _Sender.stall_at_once,
    "flip": _Sender.flip,
    "encoded": _Sender.encoded,
}


class _Server(http.server.ThreadingHTTPServer):
    """A server that does not report broken connections, because breaking them is its purpose."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep silent."""


@contextmanager
def serve_hub(files: dict[str, bytes]) -> Generator[FaultyHub, None, None]:
    """Run both servers while the block runs."""
    hub = FaultyHub(files)
    servers: list[_Server] = []
    for base in (_HubHandler, _CdnHandler):
        server = _Server(("127.0.0.1", 0), partial(base, hub))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
    hub.hub_url, hub.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    try:
        yield hub
    finally:
        hub.released.set()
        for server in servers:
            server.shutdown()
            server.server_close()
