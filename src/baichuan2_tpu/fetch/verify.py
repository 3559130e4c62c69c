"""Prove a fetched folder again: which model it holds, and every file beside its record; no hub is asked.

Not here: repairing it (``models``, ``vendor``), what a record holds (``lock_file``).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from baichuan2_tpu.errors import FetchError, RequestError
from baichuan2_tpu.fetch.catalog import HUB_MODELS, VENDOR_MODELS
from baichuan2_tpu.fetch.record import WORK_NAME, Record, RecordedFile
from baichuan2_tpu.files import locked_folder

__all__ = ["check_model", "find_damage"]

_CANNOT_WRITE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def check_model(folder: Path, name: str, revision: str | None = None) -> None:
    """Check that a folder is recorded as this model, and of this revision where one is asked for.

    Raises: FetchError when nothing was fetched into the folder; RequestError when it holds another model.
    """
    record = _read_record(folder)
    vendor = VENDOR_MODELS.get(name)
    is_model = vendor.bmodel in record.wanted if vendor else record.repository == HUB_MODELS[name].repository
    if not is_model:
        held = record.wanted[-1] if record.source == "sophgo" else record.repository
        raise RequestError(f"{folder} holds {held}, asked was {name}; name its own folder with --to")
    if revision not in (None, record.revision):
        raise RequestError(
            f"{folder} holds revision {record.revision}, asked was {revision}; leave --revision out"
        )


def find_damage(folder: Path) -> dict[str, str]:
    """Compare every file of a fetched folder with its record; return what is wrong, by name.

    Side effect: what was not known is noted, where the folder can be written: a file that is damaged, so that
    the next fetch replaces it, and the time of change of one that is right, so that it counts as whole.
    Raises: FetchError when nothing was fetched into the folder; RequestError while it is being written.
    """
    record = _read_record(folder)
    complaints = {name: _complaint(record.files.get(name), folder / name) for name in record.wanted}
    seen = _with_findings(record, folder, complaints)
    if seen != record:
        _note(folder, record, seen)
    return {name: what for name, what in complaints.items() if what}


def _read_record(folder: Path) -> Record:
    record = Record.read(folder)
    if record is None:
        raise FetchError(f"{folder}: nothing was fetched into it; fetch the model first")
    return record


def _complaint(known: RecordedFile | None, path: Path) -> str:
    """Say what is wrong with a file, nothing where it is right."""
    if known is None or not path.is_file():
        return "is missing"
    if path.stat().st_size != known.nbytes:
        return f"has {path.stat().st_size} bytes, recorded are {known.nbytes}"
    return "" if known.is_at(path) else f"its sha256 is not the recorded {known.sha256}"


def _with_findings(record: Record, folder: Path, complaints: Mapping[str, str]) -> Record:
    """Return the record with the time of change of every file that is right, and 0 for the others."""
    for name, what in complaints.items():
        known = record.files.get(name)
        if known is not None:
            changed_ns = 0 if what else (folder / name).stat().st_mtime_ns
            record = record.with_file(name, replace(known, changed_ns=changed_ns))
    return record


def _note(folder: Path, before: Record, seen: Record) -> None:
    """Write what was seen, unless a fetch has come between; a folder of somebody else is read alone."""
    try:
        with locked_folder(folder / WORK_NAME):
            if Record.read(folder) == before:
                seen.write(folder)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
