"""Verify a fetched folder: which model it holds, and every file against its record; no hub is asked.

Not here: repairing it (``models``, ``vendor``), what a record holds (``record``).
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
        raise RequestError(f"{folder} holds {held}, {name} was asked for; name its own folder with --to")
    if revision not in (None, record.revision):
        raise RequestError(
            f"{folder} holds revision {record.revision}, {revision} was asked for; leave --revision out"
        )


def find_damage(folder: Path) -> dict[str, str]:
    """Compare every file of a fetched folder with its record; return what is wrong, by name.

    Side effect: the findings are saved where the folder is writable, so that the next fetch replaces a
    damaged file, and an unchanged one counts as complete although its time of change is another.
    Raises: FetchError when nothing was fetched into the folder; RequestError while it is being written.
    """
    record = _read_record(folder)
    complaints = {name: _complaint(record.files.get(name), folder / name) for name in record.wanted}
    updated = _add_findings(record, folder, complaints)
    if updated != record:
        _save(folder, record, updated)
    return {name: complaint for name, complaint in complaints.items() if complaint}


def _read_record(folder: Path) -> Record:
    record = Record.read(folder)
    if record is None:
        raise FetchError(f"{folder}: nothing was fetched into it; fetch the model first")
    return record


def _complaint(known: RecordedFile | None, path: Path) -> str:
    """Say what is wrong with a file; nothing where it is unchanged."""
    if known is None or not path.is_file():
        return "is missing"
    if path.stat().st_size != known.nbytes:
        return f"has {path.stat().st_size} bytes, {known.nbytes} are recorded"
    return "" if known.is_at(path) else f"its sha256 is not the recorded {known.sha256}"


def _add_findings(record: Record, folder: Path, complaints: Mapping[str, str]) -> Record:
    """Return the record with the time of change of every file that is unchanged, and 0 for the others."""
    for name, complaint in complaints.items():
        known = record.files.get(name)
        if known is not None:
            changed_ns = 0 if complaint else (folder / name).stat().st_mtime_ns
            record = record.with_file(name, replace(known, changed_ns=changed_ns))
    return record


def _save(folder: Path, before: Record, updated: Record) -> None:
    """Save the findings unless a fetch changed the record meanwhile. Read-only folders are left alone."""
    try:
        with locked_folder(folder / WORK_NAME):
            if Record.read(folder) == before:
                updated.write(folder)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
