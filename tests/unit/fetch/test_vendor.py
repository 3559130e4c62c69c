"""The vendor's bmodels come through dfss, here a double of it: whole and recorded, or not at all."""

import hashlib
import io
import os
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.errors import FetchError, RequestError
from baichuan2_tpu.fetch import fetched_folder, find_fetched
from baichuan2_tpu.fetch.record import WORK_NAME
from baichuan2_tpu.fetch.vendor import _size_bytes, fetch_vendor_model
from baichuan2_tpu.fetch.verify import find_damage
from baichuan2_tpu.files import FileDigest

NAME = "baichuan2-7b-int8-bmodel"
BMODEL = "baichuan2-7b_int8_1dev.bmodel"
TOKENIZER = b"tokenizer of the vendor" * 9
CONTENT = struct.pack("<IIIQ", 0xFF55AAEE, 64, 4, 1000).ljust(64, b"\0") + bytes(4) + bytes(range(250)) * 4

DOUBLE = """
import os, pathlib, subprocess, sys, time
url = next(word for word in sys.argv if word.startswith("--url=open@sophgo.com:sophon-demo/baichuan2/"))
name = url.rpartition("/")[2]
store = pathlib.Path(__file__).with_name("store")
print("connecting to the server")
with (store / "asked").open("a") as file:
    file.write(name + "\\n")
if (store / "hang").exists():
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (store / "pids.tmp").write_text(f"{os.getpid()} {helper.pid}")
    (store / "pids.tmp").rename(store / "pids")
    time.sleep(60)
if not (store / name).exists():
    print("\\033[31m no such file \\033[0m")
    sys.exit(1)
if not (store / "silent").exists():
    pathlib.Path(name).write_bytes((store / name).read_bytes())
"""


@dataclass(frozen=True)
class Vendor:
    """What the double of dfss serves."""

    store: Path

    def asked(self) -> list[str]:
        path = self.store / "asked"
        return path.read_text().split() if path.exists() else []


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, content in members.items():
            opened.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return buffer.getvalue()


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vendor:
    package = tmp_path / "site" / "dfss"
    (package / "store").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(DOUBLE)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    known = FileDigest(len(TOKENIZER), hashlib.sha256(TOKENIZER).hexdigest())
    files = {("sophon-demo/baichuan2", "tokenizer.model"): known}
    monkeypatch.setattr("baichuan2_tpu.fetch.vendor.KNOWN_FILES", files)
    monkeypatch.setattr("baichuan2_tpu.fetch.vendor._LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("baichuan2_tpu.fetch.vendor.check_space", lambda *_: None)
    store = package / "store"
    (store / BMODEL).write_bytes(CONTENT)
    (store / "token_config.zip").write_bytes(
        archive(token_config__tokenizer_dot_model=TOKENIZER, token_config__tokenization_dot_py=b"code")
    )
    return Vendor(store)


def fetch(folder: Path | None = None) -> Path:
    return fetch_vendor_model(NAME, folder, notice=lambda _: None)


def test_folder_is_a_model_that_engines_take(vendor: Vendor) -> None:
    notices: list[str] = []
    amounts: list[tuple[int, int]] = []
    folder = fetch_vendor_model(NAME, notice=notices.append, progress=lambda *amount: amounts.append(amount))
    assert folder == fetched_folder(NAME) == find_fetched(NAME)
    assert {path.name for path in folder.iterdir()} == {BMODEL, "tokenizer.model", WORK_NAME}
    assert (folder / BMODEL).read_bytes() == CONTENT
    assert (folder / "tokenizer.model").read_bytes() == TOKENIZER
    assert identify(folder).kind == "bmodel"
    assert notices == [
        f"fetching {name} from the vendor with dfss, into {folder}" for name in ("tokenizer.model", BMODEL)
    ]
    assert amounts


def test_whole_model_is_not_asked_for_again(vendor: Vendor) -> None:
    fetch()
    assert vendor.asked() == ["token_config.zip", BMODEL]
    fetch_vendor_model(NAME, notice=pytest.fail)
    assert vendor.asked() == ["token_config.zip", BMODEL]


def test_damaged_bmodel_alone_is_fetched_again(vendor: Vendor) -> None:
    folder = fetch()
    (folder / BMODEL).write_bytes(CONTENT[:-1])
    assert find_damage(folder) == {BMODEL: f"has {len(CONTENT) - 1} bytes, {len(CONTENT)} are recorded"}
    fetch()
    assert vendor.asked() == ["token_config.zip", BMODEL, BMODEL]
    assert find_damage(folder) == {}


def test_touched_file_is_read_once_and_kept(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a folder was read to its last byte at every use."""
    folder = fetch()
    os.utime(folder / BMODEL, (1, 1))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fetch()
    assert vendor.asked() == ["token_config.zip", BMODEL]
    assert find_fetched(NAME) == folder


def test_missing_tool_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        FetchError, match=f"run {sys.executable} -m pip install dfss and the same command again"
    ):
        fetch(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_folder_of_that_name_is_not_the_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "site" / "dfss").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(FetchError, match="which is not installed"):
        fetch(tmp_path / "model")


def test_failure_of_the_tool_tells_its_last_line(vendor: Vendor, tmp_path: Path) -> None:
    (vendor.store / BMODEL).unlink()
    with pytest.raises(
        FetchError, match=r"dfss could not bring .*_1dev.bmodel \(exit code 1, .* no such file"
    ):
        fetch(tmp_path / "model")
    assert not (tmp_path / "model" / BMODEL).exists()
    (vendor.store / BMODEL).write_bytes(CONTENT)
    fetch(tmp_path / "model")
    assert vendor.asked() == ["token_config.zip", BMODEL, BMODEL]


def test_file_that_is_gone_when_it_is_measured_counts_nothing(tmp_path: Path) -> None:
    """A file that dfss had renamed after it was listed ended the download."""
    (tmp_path / "saved").write_bytes(b"123")
    assert [_size_bytes(tmp_path / name) for name in ("saved", "renamed")] == [3, 0]


def test_tool_that_brings_nothing_and_succeeds_has_failed(vendor: Vendor, tmp_path: Path) -> None:
    (vendor.store / "silent").touch()
    with pytest.raises(FetchError, match=r"could not bring token_config.zip \(exit code 0, 'connecting"):
        fetch(tmp_path / "model")


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:70], b"", b"<html>not found</html>" * 9])
def test_bmodel_that_is_cut_short_is_refused(vendor: Vendor, tmp_path: Path, content: bytes) -> None:
    (vendor.store / BMODEL).write_bytes(content)
    with pytest.raises(FetchError, match="what dfss fetched is cut short or not a bmodel"):
        fetch(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [WORK_NAME, "tokenizer.model"]
    assert not list((tmp_path / "model" / WORK_NAME).glob("dfss-*"))


def damaged_archive() -> bytes:
    """Return an archive whose compressed tokenizer begins with a block of a kind there is not."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("tokenizer.model", TOKENIZER)
    content = bytearray(buffer.getvalue())
    content[30 + len("tokenizer.model")] = 0xFF  # behind the header of the member
    return bytes(content)


@pytest.mark.parametrize(
    "content", [b"no zip", archive(readme=b"hello"), archive(), pytest.param(damaged_archive(), id="damaged")]
)
def test_archive_without_a_tokenizer_is_refused(vendor: Vendor, tmp_path: Path, content: bytes) -> None:
    (vendor.store / "token_config.zip").write_bytes(content)
    with pytest.raises(
        FetchError, match=r"token_config.zip of the vendor has no tokenizer.model that can be read"
    ):
        fetch(tmp_path / "model")


@pytest.mark.parametrize("content", [TOKENIZER[:-1] + b"x", TOKENIZER + b"more", TOKENIZER * 1000])
def test_other_tokenizer_is_refused_with_both_digests(vendor: Vendor, tmp_path: Path, content: bytes) -> None:
    (vendor.store / "token_config.zip").write_bytes(archive(tokenizer_dot_model=content))
    with pytest.raises(
        FetchError, match=r"sha256 [0-9a-f]{64}, known are \d+ bytes with sha256 [0-9a-f]{64}"
    ):
        fetch(tmp_path / "model")
    assert not (tmp_path / "model" / "tokenizer.model").exists()


def test_other_bmodel_than_the_recorded_one_is_refused(vendor: Vendor) -> None:
    folder = fetch()
    (folder / BMODEL).unlink()
    (vendor.store / BMODEL).write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(FetchError, match=r"has 1068 bytes with sha256 [0-9a-f]{64}, known are 1068 bytes"):
        fetch()
    assert not (folder / BMODEL).exists()


@pytest.mark.parametrize("name", ["tokenizer.model", BMODEL])
def test_file_of_somebody_else_is_never_replaced(vendor: Vendor, tmp_path: Path, name: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_text("mine")
    with pytest.raises(RequestError, match=f"{name} was not fetched into this folder"):
        fetch(tmp_path / "model")
    assert (tmp_path / "model" / name).read_text() == "mine"


def test_folder_of_the_other_bmodel_is_refused(vendor: Vendor, tmp_path: Path) -> None:
    """Two bmodels in a folder would be no model."""
    fetch(tmp_path / "model")
    with pytest.raises(RequestError, match=f"holds tokenizer.model, {BMODEL} of .*; name another folder"):
        fetch_vendor_model("baichuan2-7b-int4-bmodel", tmp_path / "model", notice=pytest.fail)


def test_disk_without_room_is_told_first(
    vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, needed_bytes: int, spare_bytes: int) -> None:
        raise FetchError(f"{needed_bytes} {spare_bytes}")

    monkeypatch.setattr("baichuan2_tpu.fetch.vendor.check_space", refuse)
    with pytest.raises(FetchError, match="9500000000 0"):
        fetch(tmp_path / "model")
    assert vendor.asked() == []


CHILD = """
import sys
from pathlib import Path
from baichuan2_tpu.fetch.vendor import _size_bytes, fetch_vendor_model
fetch_vendor_model("baichuan2-7b-int8-bmodel", Path(sys.argv[1]), notice=print)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_interrupted_tool_leaves_no_half_file(vendor: Vendor, tmp_path: Path, number: signal.Signals) -> None:
    """A tool that was left alone went on to fetch its gigabytes, with the child that it has."""
    (vendor.store / "hang").touch()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "model")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pids = vendor.store / "pids"
    _wait_until(lambda: pids.exists() or child.poll() is not None)
    child.send_signal(number)
    assert child.wait() != 0
    _wait_until(lambda: not any(_is_running(int(pid)) for pid in pids.read_text().split()))
    assert [path.name for path in (tmp_path / "model").iterdir()] == [WORK_NAME]


def _is_running(pid: int) -> bool:
    """Tell whether a process runs; one that has ended may wait for its parent to ask."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def _wait_until(condition: Callable[[], bool]) -> None:
    """Wait, but less than the 60 s after which a tool that hangs ends of itself."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for 30 s")
