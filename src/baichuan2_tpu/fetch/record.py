"""What a fetched folder must hold: sizes and sha256, known beforehand or recorded at the first fetch.

``.fetch/record.json`` in the folder of a model names the hub, the revision, every file that belongs to the
model, and the size, sha256 and time of change of those that are there. Files are compared with it later.
Not here: the digests that a hub lists (``transfer.hubs``).
Source of the known digest: ``tokenizer.model`` of Baichuan2-7B-Chat, measured on that file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from typing_extensions import Self

from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.fetch.cache import fetched_folder
from baichuan2_tpu.files import FileDigest, check_plain_name, find_json, read_values, write_json

__all__ = ["KNOWN_FILES", "WORK_NAME", "Record", "RecordedFile", "find_fetched"]

WORK_NAME = ".fetch"
"""Folder in a model's folder for the record and for unfinished files."""

_RECORD_NAME = "record.json"
_FORMAT = 1
_ADVICE = "remove it; files that are unchanged are kept"

_TOKENIZER = FileDigest(2_001_107, "79452955be6b419a65984273a9f08af86042e1c2a75ee3ba989cbf620a133cc2")

KNOWN_FILES: Mapping[tuple[str, str], FileDigest] = {
    ("baichuan-inc/Baichuan2-7B-Chat", "tokenizer.model"): _TOKENIZER,
    ("sophon-demo/baichuan2", "tokenizer.model"): _TOKENIZER,
}
"""By repository and name: what is known of a file before it is fetched."""


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """A file that was fetched. Units: ``changed_ns`` since the epoch; 0 when it was found damaged later."""

    nbytes: int
    sha256: str
    changed_ns: int

    def is_untouched(self, path: Path) -> bool:
        """Tell whether a file has its size and its time of change, without reading it."""
        if not path.is_file():
            return False
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (self.nbytes, self.changed_ns)

    def is_at(self, path: Path) -> bool:
        """Tell whether a file is this one, read to its last byte."""
        return FileDigest(self.nbytes, self.sha256).is_at(path)


@dataclass(frozen=True, slots=True)
class Record:
    """Where a folder's files come from, which they are, and which of them are there."""

    source: str
    repository: str
    revision: str
    wanted: tuple[str, ...]
    files: Mapping[str, RecordedFile] = field(default_factory=dict[str, RecordedFile])

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the record of a folder, None where nothing was fetched.

        Raises: FetchError when there is one that cannot be read.
        """
        path = folder / WORK_NAME / _RECORD_NAME
        values = find_json(path, FetchError, _ADVICE)
        if values is None:
            return None
        if values.pop("format", None) != _FORMAT:
            raise FetchError(f"{path}: is not of format {_FORMAT}; {_ADVICE}")
        try:
            record = read_values(cls, values)
            for name in (*record.wanted, *record.files):
                check_plain_name(name)
        except ValueError as error:
            raise FetchError(f"{path}: {error}; {_ADVICE}") from error
        return record

    def write(self, folder: Path) -> None:
        """Write the record into a folder, all at once."""
        write_json(folder / WORK_NAME / _RECORD_NAME, {"format": _FORMAT, **asdict(self)})

    def with_file(self, name: str, file: RecordedFile) -> Self:
        """Return the record with one more file, or with another state of it."""
        return replace(self, files={**self.files, name: file})

    def is_whole(self, folder: Path) -> bool:
        """Tell whether every file is there and untouched, without reading them."""
        return bool(self.wanted) and all(
            name in self.files and self.files[name].is_untouched(folder / name) for name in self.wanted
        )


def find_fetched(name: str) -> Path | None:
    """Return the folder of a model in the user's cache, None where it is not whole; no file is read."""
    folder = fetched_folder(name)
    record = Record.read(folder)
    return folder if record is not None and record.is_whole(folder) else None
