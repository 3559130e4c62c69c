"""Bring a checkpoint from a hub into a folder: list, choose, compare, make sure of the disk, download.

A file in the folder is complete and verified, or not there. Files that are unchanged are not fetched again;
only truncated or changed ones are. In a folder that was not made here, nothing is replaced.
A model consists of data alone, and one set of weights: no ``.py`` file is ever fetched, and safetensors are
preferred to ``.bin`` files, which hold the same numbers.
Not here: one file's way (``transfer.download``), the vendor's bmodels (``vendor``), names (``catalog``).
Source: the names that transformers gives to shards, "model-00001-of-00003.safetensors".
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import httpx

from baichuan2_tpu.errors import FetchError, RequestError
from baichuan2_tpu.fetch.cache import fetched_folder
from baichuan2_tpu.fetch.catalog import HUB_MODELS
from baichuan2_tpu.fetch.record import KNOWN_FILES, WORK_NAME, Record, RecordedFile
from baichuan2_tpu.fetch.transfer.client import keep_trying, open_client
from baichuan2_tpu.fetch.transfer.download import Address, DownloadSettings, Watcher, download_file
from baichuan2_tpu.fetch.transfer.hubs import Hub, RemoteFile, SourceName, open_hub
from baichuan2_tpu.fetch.transfer.part_file import PartFile
from baichuan2_tpu.fetch.wheels import DownloadProgress
from baichuan2_tpu.files import disk_errors, hash_file, locked_folder

__all__ = ["FetchSettings", "check_space", "fetch_model", "select_files"]

Notice = Callable[[str], None]
_SPARE_BYTES = 64 << 20  # the record, and what else happens on a disk meanwhile
_LISTING_ATTEMPTS = 3
_NOTICE_BYTES = 100 << 20
_BLOCK_BYTES = 512  # unit of st_blocks on Linux

_REQUIRED = ("config.json", "tokenizer.model")
_OPTIONAL = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_WEIGHTS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
_FILE_LIMIT_BYTES = 1 << 40
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Where from and where to; None leaves it to the hub or to the user's cache.

    Units: ``spare_bytes`` must be free besides, for what is made of the model.
    """

    source: SourceName = "huggingface"
    revision: str | None = None
    folder: Path | None = None
    spare_bytes: int = 0
    download: DownloadSettings = field(default_factory=DownloadSettings)


def fetch_model(
    name: str,
    settings: FetchSettings | None = None,
    *,
    notice: Notice,
    progress: DownloadProgress | None = None,
) -> Path:
    """Return the folder of a checkpoint, fetched first as far as it is not there.

    Nothing is asked of the network when every file is there with its size and time of change.
    Side effect: files stay when it is interrupted, unfinished ones too; the same call continues.
    Raises: FetchError about the network, the hub or the disk; RequestError about the folder.
    """
    settings = settings or FetchSettings()
    repository = HUB_MODELS[name].repository
    folder = settings.folder or fetched_folder(name, settings.revision)
    record = Record.read(folder)
    if record is not None and record.repository != repository:
        raise RequestError(f"{folder} holds {record.repository}; name another folder for {repository}")
    is_revision = record is not None and settings.revision in (None, record.revision)
    if record is not None and is_revision and record.is_whole(folder):
        return folder
    hub = open_hub(settings.source, os.environ)
    if hub.is_offline:
        raise FetchError(
            f"{name} is not complete in {folder}, and HF_HUB_OFFLINE forbids fetching it; unset it"
        )
    pinned = record.revision if record is not None and record.source == hub.name else hub.default_revision
    patience = settings.download.patience
    with open_client(patience, settings.download.connections) as client:
        listing = keep_trying(
            partial(hub.list_files, client, repository, settings.revision or pinned),
            # Nothing is fetched yet: a user who cannot reach this hub learns it soon, and takes the other.
            replace(patience, attempts=min(patience.attempts, _LISTING_ATTEMPTS)),
            where=f"{hub.name}: {repository}",
            sleep=time.sleep,
        )
        files = select_files(listing.files, f"{hub.name}: {repository} at {listing.revision}")
        with locked_folder(folder / WORK_NAME), disk_errors(folder, FetchError):
            before = Record.read(folder)
            task = _Task(hub, client, repository, listing.revision, files, settings.download, notice)
            _Fetching(task, folder, before, progress).run(settings.spare_bytes)
    return folder


def check_space(folder: Path, needed_bytes: int, spare_bytes: int) -> None:
    """Check that the disk has room for what will be fetched, and for what will be made of it.

    Raises: FetchError with the numbers.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + spare_bytes + _SPARE_BYTES:
        after = f" and {spare_bytes / 1e9:.1f} GB for what is made of it" if spare_bytes else ""
        raise FetchError(
            f"{folder}: {needed_bytes / 1e9:.1f} GB are still to be fetched{after}, the disk has "
            f"{free / 1e9:.1f} GB free; free some, or name a folder on another disk with --to"
        )


@dataclass(frozen=True, slots=True)
class _Task:
    """What is fetched, from where, and how."""

    hub: Hub
    client: httpx.Client
    repository: str
    revision: str
    files: tuple[RemoteFile, ...]
    download: DownloadSettings
    notice: Notice


class _Fetching:
    """A folder that is being filled; the caller holds its lock."""

    def __init__(
        self, task: _Task, folder: Path, before: Record | None, progress: DownloadProgress | None
    ) -> None:
        self._task = task
        self._folder = folder
        self._work = folder / WORK_NAME
        self._is_ours = before is not None
        self._record = Record(
            source=task.hub.name,
            repository=task.repository,
            revision=task.revision,
            wanted=tuple(file.name for file in task.files),
            files={} if before is None else before.files,
        )
        self._progress = progress
        self._done_bytes = 0
        self._total_bytes = sum(file.nbytes for file in task.files)

    def run(self, spare_bytes: int) -> None:
        """Fetch what is missing."""
        for file in self._task.files:
            self._check_listed(file)
        missing = [file for file in self._task.files if not self._is_there(file)]
        left = sum(file.nbytes for file in missing)
        self._done_bytes = self._total_bytes - left
        check_space(self._work, max(0, left - self._part_bytes()), spare_bytes)
        self._record.write(self._folder)
        if missing:
            self._task.notice(
                f"fetching {self._task.repository} at {self._task.revision[:12]} from {self._task.hub.name}: "
                f"{_size(left)} of {_size(self._total_bytes)}, into {self._folder}"
            )
        for file in missing:
            self._fetch(file)
        for leftover in self._work.glob("*.part*"):
            leftover.unlink()

    def _check_listed(self, file: RemoteFile) -> None:
        """Compare what the hub lists with what is known or recorded of a file."""
        for expected, whose in self._expectations(file.name):
            has_digest = file.digest.kind == "sha256"
            if file.nbytes != expected[0] or (has_digest and file.digest.value != expected[1]):
                self._refuse(file, f"{file.nbytes} bytes with {file.digest}", expected, whose)

    def _expectations(self, name: str) -> list[tuple[tuple[int, str], str]]:
        """Return size and sha256 that a file must have, and who says so."""
        expected: list[tuple[tuple[int, str], str]] = []
        known = KNOWN_FILES.get((self._task.repository, name))
        if known is not None:
            expected.append(((known.nbytes, known.sha256), "known"))
        recorded = self._record.files.get(name)
        if recorded is not None:
            expected.append(((recorded.nbytes, recorded.sha256), "recorded when it was first fetched"))
        return expected

    def _refuse(self, file: RemoteFile, offered: str, expected: tuple[int, str], whose: str) -> None:
        raise FetchError(
            f"{self._task.hub.name} offers another {file.name} of {self._task.repository}: {offered}, "
            f"{whose} are {expected[0]} bytes with sha256 {expected[1]}; it is refused: take another "
            "--source, or another folder (--to) for another --revision"
        )

    def _is_there(self, file: RemoteFile) -> bool:
        """Tell whether a file is the listed one; one not fetched here is read and, if right, recorded.

        A file that is listed without a sha256 is always read: the record may be of another revision.
        """
        path = self._folder / file.name
        recorded = self._record.files.get(file.name)
        if recorded is not None and file.digest.kind == "sha256" and recorded.is_untouched(path):
            return True  # the sha256 that is recorded is the listed one
        if not path.exists():
            return False
        measured = _measure(path, file)
        if measured is not None:
            self._record = self._record.with_file(file.name, measured)
        elif not self._is_ours or not path.is_file():
            raise RequestError(
                f"{path} is not the file of {self._task.repository}, and was not fetched into this folder; "
                "move it away, or name another folder with --to"
            )
        elif recorded is not None and recorded.is_at(path):
            self._refuse(file, f"{file.nbytes} bytes with {file.digest}", *self._expectations(file.name)[-1])
        else:
            self._task.notice(f"{file.name} is cut short or changed and is fetched again")
        return measured is not None

    def _part_bytes(self) -> int:
        """Return what unfinished files take on the disk already."""
        return sum(part.stat().st_blocks * _BLOCK_BYTES for part in self._work.glob("*.part"))

    def _fetch(self, file: RemoteFile) -> None:
        """Fetch one file, compare it with what is known of it, give it its name and record it."""
        hub = self._task.hub
        if file.nbytes >= _NOTICE_BYTES:
            self._task.notice(f"fetching {file.name} ({_size(file.nbytes)})")
        address = Address(
            hub.file_url(self._task.repository, self._task.revision, file.name),
            hub.headers,
            hub.advice(self._task.repository),
        )
        part, sha256 = download_file(
            self._task.client,
            address,
            file,
            self._work,
            settings=self._task.download,
            watcher=Watcher(self._report, self._task.notice),
        )
        self._check_fetched(file, part, sha256)
        path = self._folder / file.name
        part.become(path)
        fetched = RecordedFile(file.nbytes, sha256, path.stat().st_mtime_ns)
        self._record = self._record.with_file(file.name, fetched)
        self._record.write(self._folder)

    def _check_fetched(self, file: RemoteFile, part: PartFile, sha256: str) -> None:
        """Compare the sha256 of a fetched file, which a hub need not list for a small one."""
        for expected, whose in self._expectations(file.name):
            if (file.nbytes, sha256) != expected:
                part.discard()
                self._refuse(file, f"{file.nbytes} bytes with sha256 {sha256}", expected, whose)

    def _report(self, nbytes: int) -> None:
        self._done_bytes += nbytes
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)


def _measure(path: Path, file: RemoteFile) -> RecordedFile | None:
    """Describe a file that is there, or return None when it is not the one that is listed."""
    if not path.is_file() or path.stat().st_size != file.nbytes:
        return None
    digests = hash_file(path, {file.digest.kind, "sha256"})
    if digests[file.digest.kind] != file.digest.value:
        return None
    return RecordedFile(file.nbytes, digests["sha256"], path.stat().st_mtime_ns)


def _size(nbytes: int) -> str:
    """Write a size for people."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 100_000_000 else f"{nbytes / 1e6:.1f} MB"


def select_files(files: Mapping[str, RemoteFile], where: str) -> tuple[RemoteFile, ...]:
    """Return the files to fetch, small ones first, so that what is wrong shows early.

    Raises: FetchError when the repository lacks a file that a model needs, or lists it without proof.
    """
    missing = [name for name in _REQUIRED if name not in files]
    if missing:
        raise FetchError(f"{where}: holds no {' and no '.join(missing)}; take another --revision or --source")
    names = [*_REQUIRED, *(name for name in _OPTIONAL if name in files), *_weight_names(files, where)]
    chosen = [files[name] for name in names]
    for file in chosen:
        _check(file, where)
    return tuple(sorted(chosen, key=lambda file: (file.nbytes, file.name)))


def _check(file: RemoteFile, where: str) -> None:
    """Check that a file is listed with a size and a digest, without which it could not be proven."""
    if not 0 < file.nbytes <= _FILE_LIMIT_BYTES:
        raise FetchError(f"{where}: lists {file.name} with {file.nbytes} bytes; take another --source")
    if not file.digest.is_formed:
        raise FetchError(
            f"{where}: lists {file.name} with the malformed digest {file.digest}; take another --source"
        )


def _weight_names(files: Mapping[str, RemoteFile], where: str) -> list[str]:
    """Return the names of the first whole set of weights: one file, or an index with all its shards."""
    for stem, suffix in _WEIGHTS:
        if f"{stem}{suffix}" in files:
            return [f"{stem}{suffix}"]
        index = f"{stem}{suffix}.index.json"
        shards = _whole_set(files, stem, suffix)
        if index in files and shards:
            return [index, *shards]
    raise FetchError(
        f"{where}: holds no complete set of weights, neither model.safetensors nor pytorch_model.bin nor all "
        "shards of one with its .index.json; take another --revision or --source"
    )


def _whole_set(files: Mapping[str, RemoteFile], stem: str, suffix: str) -> list[str]:
    """Return the shards of a set, none when one of them is missing."""
    shards: dict[int, str] = {}
    counts: set[int] = set()
    for name in files:
        match = _SHARD.fullmatch(name[len(stem) : -len(suffix)])
        if match and name == f"{stem}{match[0]}{suffix}":
            shards[int(match[1])] = name
            counts.add(int(match[2]))
    is_whole = len(counts) == 1 and set(shards) == set(range(1, max(counts) + 1))
    return [shards[number] for number in sorted(shards)] if is_whole else []
