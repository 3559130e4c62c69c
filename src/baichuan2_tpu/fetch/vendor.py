"""Bring a bmodel that the vendor has compiled, with its tokenizer, by the vendor's own download tool.

The vendor's files lie on a server of its own protocol, which ``dfss`` speaks; it is asked for, never bundled.
It publishes no sizes and no digests: a bmodel is accepted when it is as long as its header says, and what
came first is recorded and compared ever after. The result is a folder that the engines take as it is.
Not here: running it (``engine.compiled.open_vendor_bmodel``).
Source: sample/Baichuan2/scripts/download.sh of sophgo/sophon-demo; dfss 1.10.9, which saves into the current
folder and ends with 1 when it fails.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from baichuan2_tpu.bmodel.layout import BmodelEnvelope
from baichuan2_tpu.errors import ArtifactError, FetchError, RequestError
from baichuan2_tpu.fetch.cache import fetched_folder
from baichuan2_tpu.fetch.catalog import VENDOR_MODELS
from baichuan2_tpu.fetch.models import check_space
from baichuan2_tpu.fetch.record import KNOWN_FILES, WORK_NAME, Record, RecordedFile
from baichuan2_tpu.fetch.wheels import DownloadProgress
from baichuan2_tpu.files import digest_file, disk_errors, locked_folder, move_whole
from baichuan2_tpu.programs import kill_program, start_program

__all__ = ["fetch_vendor_model"]

_REPOSITORY = "sophon-demo/baichuan2"
_TOKENIZER = "tokenizer.model"
_ARCHIVE = "token_config.zip"
_SCRATCH = "dfss-"
_LOOK_EVERY_S = 0.2


def fetch_vendor_model(
    name: str,
    folder: Path | None = None,
    *,
    notice: Callable[[str], None],
    progress: DownloadProgress | None = None,
) -> Path:
    """Return the folder of a compiled model, fetched first as far as it is not there.

    Side effect: dfss is run; what it saves is moved into the folder when it is whole.
    Raises: FetchError about dfss, what it brings, or the disk; RequestError about the folder.
    """
    model = VENDOR_MODELS[name]
    folder = folder or fetched_folder(name)
    names = (_TOKENIZER, model.bmodel)
    record = Record.read(folder)
    if record is not None and record.is_whole(folder) and record.wanted == names:
        return folder
    if record is None:
        _check_tool()  # before a folder is made
    with locked_folder(folder / WORK_NAME), disk_errors(folder, FetchError):
        record = _update_times(_open_record(folder, names), folder)
        missing = [
            file
            for file in names
            if file not in record.files or not record.files[file].is_untouched(folder / file)
        ]
        if missing:
            _check_tool()
        check_space(folder / WORK_NAME, model.room_bytes if model.bmodel in missing else 0, 0)
        record.write(folder)
        for leftover in (folder / WORK_NAME).glob(f"{_SCRATCH}*"):
            shutil.rmtree(leftover)
        for file in missing:
            notice(f"fetching {file} from the vendor with dfss, into {folder}")
            bring = _bring_tokenizer if file == _TOKENIZER else _bring_bmodel
            with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder / WORK_NAME) as scratch:
                fetched = bring(Path(scratch), file, lambda done: _report(progress, done, model.room_bytes))
                record = _accept(record, fetched, folder / file)
            record.write(folder)
    return folder


def _report(progress: DownloadProgress | None, done: int, at_most: int) -> None:
    if progress is not None:
        progress(min(done, at_most), at_most)


def _check_tool() -> None:
    module = importlib.util.find_spec("dfss")
    if module is None or module.origin is None:  # any folder of that name is a module without an origin
        raise FetchError(
            "the vendor's files come with its own tool dfss, which is not installed; "
            f"run {sys.executable} -m pip install dfss and the same command again"
        )


def _open_record(folder: Path, names: tuple[str, ...]) -> Record:
    """Return the folder's record, or a new one where the folder has none and none of the files."""
    record = Record.read(folder)
    if record is None:
        present = [name for name in names if (folder / name).exists()]
        if present:
            raise RequestError(
                f"{folder / present[0]} was not fetched into this folder; move it away, or name another"
            )
        return Record("sophgo", _REPOSITORY, "", names)
    if (record.repository, record.wanted) != (_REPOSITORY, names):
        held = ", ".join(record.wanted)
        raise RequestError(f"{folder} holds {held} of {record.repository}; name another folder")
    return record


def _update_times(record: Record, folder: Path) -> Record:
    """Return the record with the present time of change of every file whose content is unchanged."""
    for name, recorded in record.files.items():
        path = folder / name
        if not recorded.is_untouched(path) and recorded.is_at(path):
            record = record.with_file(name, replace(recorded, changed_ns=path.stat().st_mtime_ns))
    return record


def _bring_bmodel(scratch: Path, name: str, report: Callable[[int], None]) -> Path:
    """Fetch a bmodel and check that it is as long as its header says."""
    path = _run_dfss(scratch, name, report)
    try:
        BmodelEnvelope.read(path)
    except ArtifactError as error:
        raise FetchError(f"what dfss fetched is cut short or not a bmodel ({error}); try again") from error
    return path


def _bring_tokenizer(scratch: Path, name: str, report: Callable[[int], None]) -> Path:
    """Fetch the archive with the tokenizer and take that one file out of it."""
    archive, target = _run_dfss(scratch, _ARCHIVE, report), scratch / name
    limit = KNOWN_FILES[_REPOSITORY, name].nbytes + 1
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [path for path in opened.namelist() if PurePosixPath(path).name == name]
            with opened.open(members[0]) as member:
                target.write_bytes(member.read(limit))
    except (zipfile.BadZipFile, zlib.error, IndexError, NotImplementedError, RuntimeError, EOFError) as error:
        raise FetchError(
            f"{_ARCHIVE} of the vendor has no {name} that can be read ({error}); try again"
        ) from error
    return target


def _run_dfss(scratch: Path, name: str, report: Callable[[int], None]) -> Path:
    """Let dfss save a file into ``scratch`` and return its path."""
    command = [sys.executable, "-m", "dfss", f"--url=open@sophgo.com:{_REPOSITORY}/{name}"]
    log = scratch / "dfss.log"
    code = _watch(command, log, report)
    if code or not (scratch / name).is_file():
        lines = log.read_text("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        raise FetchError(
            f"dfss could not bring {name} (exit code {code}, {last[-200:]!r}); check the "
            f"network and run the same command again, or try {' '.join(command)} by hand"
        )
    return scratch / name


def _watch(command: list[str], log: Path, report: Callable[[int], None]) -> int:
    """Run a command in the folder of its log, tell what it has saved there, and return its exit code."""
    with log.open("wb") as output:
        child = start_program(command, log.parent, output, has_children=True)
        try:
            while child.poll() is None:
                report(sum(_size_bytes(path) for path in log.parent.iterdir() if path != log))
                time.sleep(_LOOK_EVERY_S)
        finally:
            if child.poll() is None:
                kill_program(child)
                child.wait()
    return child.returncode


def _size_bytes(path: Path) -> int:
    """Return the size of a file, 0 when it is gone: dfss renames and removes what it works with."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _accept(record: Record, fetched: Path, target: Path) -> Record:
    """Compare a file with what is known and recorded of it, give it its name, and record it."""
    digest = digest_file(fetched)
    for expected in (KNOWN_FILES.get((_REPOSITORY, target.name)), record.files.get(target.name)):
        if expected is not None and (digest.nbytes, digest.sha256) != (expected.nbytes, expected.sha256):
            raise FetchError(
                f"the vendor's {target.name} has {digest.nbytes} bytes with sha256 {digest.sha256}, "
                f"known are {expected.nbytes} bytes with sha256 {expected.sha256}; it is refused: try again, "
                "or into another folder (--to) if the vendor has a new one"
            )
    move_whole(fetched, target)
    changed_ns = target.stat().st_mtime_ns
    return record.with_file(target.name, RecordedFile(digest.nbytes, digest.sha256, changed_ns))
