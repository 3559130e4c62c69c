"""One file over several connections: asked for in ranges, resumed where it broke, accepted by its digest.

Every range is a request of its own to the hub, which redirects it to where the file lies: signed addresses
end after a while. A server that ignores ranges is read in one stream. Nothing that a server says of a range
is believed without a check, and the file gets its name when the digest of the whole is the listed one.
Not here: which files (``models``), the file in the making (``part_file``).
Source: RFC 9110, section 14, for ranges; X-Linked-Etag as Hugging Face sends it with a redirect.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import httpx

from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.fetch.transfer.client import Fault, Patience, check_status, gave_up, mapped_errors
from baichuan2_tpu.fetch.transfer.hubs import RemoteFile
from baichuan2_tpu.fetch.transfer.part_file import PartFile, Piece
from baichuan2_tpu.files import Digest, hash_file

__all__ = ["Address", "DownloadSettings", "Watcher", "download_file"]

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_WHOLE_ATTEMPTS = 2
_NOTICE_WAIT_S = 4.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a file is asked for, with what headers, and what to do about a status."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    advice: Mapping[int, str] = field(default_factory=dict[int, str])


@dataclass(frozen=True, slots=True)
class DownloadSettings:
    """Units: ``piece_bytes`` is the range that a connection asks for at once."""

    connections: int = 4
    piece_bytes: int = 32 << 20
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, slots=True)
class Watcher:
    """Receives the progress of a download: bytes that came, below 0 for discarded ones, and long waits."""

    report: Callable[[int], None]
    notice: Callable[[str], None]


class _Changed(Exception):  # noqa: N818 - the file is begun again; no error yet
    """The file at the address is not the one it was."""


class _RangesIgnored(Exception):  # noqa: N818 - the file is read in one stream; no error
    """The server answers a request for a range with the whole file."""


class _Stopped(Exception):  # noqa: N818 - another thread has failed, or the user stops
    """The download ends, for a reason that another thread has."""


class _Meter:
    """Bytes of one file that have come, told as they come and taken back where they are given up."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._lock = threading.Lock()
        self._nbytes = 0

    def add(self, nbytes: int) -> None:
        """Count bytes, or take them back; threads may call it."""
        with self._lock:
            self._nbytes += nbytes
            self._watcher.report(nbytes)

    def reset(self) -> None:
        """Take everything back."""
        self.add(-self._nbytes)

    def tell_wait(self, name: str, fault: Fault, wait_s: float) -> None:
        """Say why nothing comes, where it lasts."""
        if wait_s >= _NOTICE_WAIT_S:
            with self._lock:
                self._watcher.notice(f"{name}: {fault}; trying again in {wait_s:.0f} s")


def download_file(
    client: httpx.Client,
    address: Address,
    file: RemoteFile,
    folder: Path,
    *,
    settings: DownloadSettings,
    watcher: Watcher,
) -> tuple[PartFile, str]:
    """Return the file as a part in ``folder``, whole and proven, that only lacks its name, and its sha256.

    Side effect: what is there stays when it is interrupted; the same call continues.
    Raises: FetchError; OSError when the disk cannot take it.
    """
    reason = ""
    meter = _Meter(watcher)
    for _ in range(_WHOLE_ATTEMPTS):
        part = PartFile(folder, file)
        meter.add(part.finished_bytes)
        try:
            _fill(_Transfer(part, client, address, file, settings.patience, meter), settings)
            digests = hash_file(part.path, {file.digest.kind, "sha256"})
        except _Changed as change:
            reason = str(change)
        except BaseException:
            part.close()
            raise
        else:
            digest = Digest(file.digest.kind, digests[file.digest.kind])
            if digest == file.digest:
                return part, digests["sha256"]
            reason = f"the file has {digest}, {file.digest} is listed"
        meter.reset()
        part.discard()
    raise FetchError(
        f"{address.url}: {reason}, {_WHOLE_ATTEMPTS} times; nothing of it is kept: a server or a proxy "
        "changes the file, take another --source"
    )


def _fill(transfer: _Transfer, settings: DownloadSettings) -> None:
    """Get every missing range; in one stream where the server knows no ranges."""
    part, size = transfer.part, transfer.file.nbytes
    try:
        transfer.run(part.missing(settings.piece_bytes), settings.connections)
    except _RangesIgnored:
        # Ranges that another server sent before cannot be continued here.
        transfer.meter.reset()
        part.forget()
        transfer.run([Piece(0, size)], 1)


@dataclass(slots=True)
class _Transfer:
    """Threads that get the pieces of one file."""

    part: PartFile
    client: httpx.Client
    address: Address
    file: RemoteFile
    patience: Patience
    meter: _Meter
    _stopped: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _version: str = ""

    def run(self, pieces: list[Piece], connections: int) -> None:
        """Get the pieces; the first failure stops the rest.

        Raises: _Changed, _RangesIgnored, FetchError, OSError.
        """
        self._stopped.clear()
        pool = ThreadPoolExecutor(connections)
        tasks = [pool.submit(self._get_piece, piece) for piece in pieces]
        try:
            wait(tasks, return_when=FIRST_EXCEPTION)
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
        errors = [error for task in tasks if not task.cancelled() and (error := task.exception())]
        for error in sorted(errors, key=lambda error: isinstance(error, _Stopped)):
            raise error

    def _get_piece(self, piece: Piece) -> None:
        """Get one piece, from where it broke, until it is there or patience ends."""
        offset, failures, lies = piece.start, 0, 0
        while offset < piece.stop:
            began = offset
            try:
                for block in self._blocks(piece, offset):
                    self.part.write(offset, block)
                    offset += len(block)
                    self.meter.add(len(block))
            except Fault as fault:
                failures = failures + 1 if offset == began else 1
                lies += fault.is_suspect
                if max(failures, lies) >= self.patience.attempts:
                    self.meter.add(piece.start - offset)
                    raise gave_up(self.address.url, max(failures, lies), fault) from fault
                if fault.is_suspect:
                    self.meter.add(piece.start - offset)
                    offset = piece.start
                wait_s = self.patience.wait_s(max(failures, lies), fault.wait_s)
                self.meter.tell_wait(self.file.name, fault, wait_s)
                if self._stopped.wait(wait_s):
                    raise _Stopped from fault
        self.part.add(piece)

    def _blocks(self, piece: Piece, offset: int) -> Generator[bytes, None, None]:
        """Ask for what is missing of a piece and yield it; every answer but the right one is a fault."""
        url, headers = self.address.url, {**self.address.headers, "Range": f"bytes={offset}-{piece.stop - 1}"}
        left = piece.stop - offset
        with mapped_errors(url), self.client.stream("GET", url, headers=headers) as response:
            self._check_answer(response, piece, offset)
            for block in response.iter_raw():
                if self._stopped.is_set():
                    raise _Stopped
                if len(block) > left:
                    raise Fault("more bytes than were asked for", is_suspect=True)
                left -= len(block)
                yield block
        if left:
            raise Fault(f"an answer {left} bytes too short")

    def _check_answer(self, response: httpx.Response, piece: Piece, offset: int) -> None:
        """Check status, version and range of an answer before a byte of it is taken."""
        url, size = self.address.url, self.file.nbytes
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _Changed(f"it is shorter than the {size} bytes that are listed")
        check_status(response, url, self.address.advice)
        self._check_version(response)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise FetchError(f"{url}: arrives in an encoding that was not requested; take another --source")
        if response.status_code != HTTPStatus.PARTIAL_CONTENT:
            self._check_whole(response, piece, offset)
            return
        given = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if given and int(given[3]) != size:
            raise _Changed(f"it has {given[3]} bytes, listed are {size}")
        if not given or (int(given[1]), int(given[2])) != (offset, piece.stop - 1):
            header = response.headers.get("Content-Range", "nothing")
            raise Fault(f"another range than bytes {offset}-{piece.stop - 1}: {header}", is_suspect=True)

    def _check_whole(self, response: httpx.Response, piece: Piece, offset: int) -> None:
        """Check an answer that is the whole file: only the beginning of a single stream may be one."""
        size = self.file.nbytes
        length = response.headers.get("Content-Length", str(size))
        if length != str(size):
            raise _Changed(f"it has {length} bytes, listed are {size}")
        if piece != Piece(0, size):
            raise _RangesIgnored
        if offset:
            raise Fault("the server cannot continue where it broke off", is_suspect=True)

    def _check_version(self, response: httpx.Response) -> None:
        """Check that all answers are of one version of the file, as far as the hub names it."""
        hops = [*response.history, response]
        linked = [hop.headers["X-Linked-Etag"] for hop in hops if "X-Linked-Etag" in hop.headers]
        # Behind a redirect every server of a network may have an ETag of its own for the same file.
        version = linked[0] if linked else "" if response.history else response.headers.get("ETag", "")
        with self._lock:
            if version and self._version and version != self._version:
                raise _Changed(f"it changes while it is fetched, from {self._version} to {version}")
            self._version = self._version or version
