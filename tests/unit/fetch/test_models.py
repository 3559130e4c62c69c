"""A folder of a model: what belongs into it, what is kept, repaired or refused, and what is recorded."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from baichuan2_tpu.errors import FetchError, RequestError
from baichuan2_tpu.fetch import fetched_folder, find_fetched, record
from baichuan2_tpu.fetch.models import FetchSettings, fetch_model
from baichuan2_tpu.fetch.record import WORK_NAME, Record
from baichuan2_tpu.fetch.verify import find_damage
from baichuan2_tpu.files import FileDigest, locked_folder
from doubles.fault_server import COMMIT, MODEL, WEIGHTS, FaultyHub


def fetch(settings: FetchSettings, name: str = MODEL) -> Path:
    return fetch_model(name, settings, notice=lambda _: None)


def asked_files(hub: FaultyHub) -> set[str]:
    return {seen.path.rpartition("/")[2] for seen in hub.requests if "/resolve/" in seen.path}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {WORK_NAME}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def test_model_without_code_comes_with_a_record(hub: FaultyHub, settings: FetchSettings) -> None:
    notices: list[str] = []
    folder = fetch_model(MODEL, settings, notice=notices.append)
    assert names(folder) == {"config.json", "generation_config.json", "tokenizer.model", WEIGHTS}
    assert not any(seen for seen in hub.requests if ".py" in seen.path)
    record = Record.read(folder)
    assert record is not None
    assert (record.source, record.revision) == ("huggingface", COMMIT)
    assert {name: file.sha256 for name, file in record.files.items()} == {
        name: sha256(hub.files[name]) for name in names(folder)
    }
    assert notices == [
        f"fetching baichuan-inc/Baichuan2-7B-Base at {COMMIT[:12]} from huggingface: 0.1 MB of 0.1 MB, "
        f"into {folder}"
    ]


def test_whole_model_asks_for_nothing(hub: FaultyHub, settings: FetchSettings) -> None:
    folder = fetch(settings)
    hub.requests.clear()
    assert fetch_model(MODEL, settings, notice=pytest.fail) == folder
    assert hub.requests == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", WEIGHTS])
@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"short"), flip]
)
def test_damaged_file_alone_is_fetched_again(
    hub: FaultyHub, settings: FetchSettings, name: str, damage: Callable[[Path], None]
) -> None:
    folder = fetch(settings)
    damage(folder / name)
    assert set(find_damage(folder)) == {name}
    hub.requests.clear()
    fetch(settings)
    assert asked_files(hub) == {name}
    assert find_damage(folder) == {}


def test_damage_that_changes_no_time_is_found_by_verifying_and_then_repaired(
    hub: FaultyHub, settings: FetchSettings
) -> None:
    """Bits that rot on a disk change neither the size nor the time of a file."""
    folder = fetch(settings)
    path = folder / WEIGHTS
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fetch_model(MODEL, settings, notice=pytest.fail) == folder
    assert find_damage(folder) == {WEIGHTS: f"its sha256 is not the recorded {sha256(hub.files[WEIGHTS])}"}
    fetch(settings)
    assert path.read_bytes() == hub.files[WEIGHTS]
    assert find_damage(folder) == {}


def test_file_that_only_looks_changed_is_kept(hub: FaultyHub, settings: FetchSettings) -> None:
    folder = fetch(settings)
    os.utime(folder / WEIGHTS, (1, 1))
    hub.requests.clear()
    fetch(settings)
    assert asked_files(hub) == set()
    assert find_fetched(MODEL) is None
    hub.requests.clear()
    fetch(settings)
    assert hub.requests == []


def test_folder_of_the_cache_is_found_when_it_is_whole(hub: FaultyHub, settings: FetchSettings) -> None:
    assert find_fetched(MODEL) is None
    folder = fetch(replace(settings, folder=None))
    assert folder == fetched_folder(MODEL) == find_fetched(MODEL)
    other = fetch(replace(settings, folder=None, revision="refs/pr/3"))
    assert other.name == f"{MODEL}@refs-pr-3"


def test_safetensors_go_before_bins_and_come_alone(hub: FaultyHub, settings: FetchSettings) -> None:
    shards = {f"model-0000{number}-of-00002.safetensors": bytes([number]) * 3000 for number in (1, 2)}
    hub.files |= shards | {"model.safetensors.index.json": b"{}"}
    folder = fetch(settings)
    assert {name for name in names(folder) if "model-" in name or name == WEIGHTS} == set(shards)


def test_files_that_are_there_already_are_taken_over(
    hub: FaultyHub, settings: FetchSettings, folder: Path
) -> None:
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(hub.files[WEIGHTS])
    (folder / "notes.txt").write_text("mine")
    fetch(settings)
    assert asked_files(hub) == {"config.json", "generation_config.json", "tokenizer.model"}
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_file_of_another_model_is_never_replaced(
    hub: FaultyHub, settings: FetchSettings, folder: Path, name: str
) -> None:
    folder.mkdir()
    mine = bytes(len(hub.files[name]))
    (folder / name).write_bytes(mine)
    with pytest.raises(
        RequestError, match=f"{name} is not the file of .*, and was not fetched into this folder"
    ):
        fetch(settings)
    assert (folder / name).read_bytes() == mine
    assert asked_files(hub) == set()


def test_folder_with_another_model_is_refused(hub: FaultyHub, settings: FetchSettings, folder: Path) -> None:
    fetch(settings)
    with pytest.raises(RequestError, match="holds baichuan-inc/Baichuan2-7B-Base; name another folder"):
        fetch(settings, "baichuan2-13b-base")


def test_record_refuses_another_file_with_both_digests(hub: FaultyHub, settings: FetchSettings) -> None:
    folder = fetch(settings)
    old, new = hub.files[WEIGHTS], hub.files[WEIGHTS][::-1]
    hub.files[WEIGHTS] = new
    (folder / WEIGHTS).unlink()
    hub.requests.clear()
    with pytest.raises(FetchError) as caught:
        fetch(settings)
    assert sha256(old) in str(caught.value)
    assert sha256(new) in str(caught.value)
    assert "recorded when it was first fetched are" in str(caught.value)
    assert asked_files(hub) == set()


def test_record_refuses_another_small_file_when_it_has_come(hub: FaultyHub, settings: FetchSettings) -> None:
    """Hugging Face lists no sha256 of it: the size agrees, the content does not."""
    folder = fetch(settings)
    old, new = hub.files["config.json"], hub.files["config.json"][::-1]
    hub.files["config.json"] = new
    (folder / "config.json").unlink()
    with pytest.raises(FetchError, match=f"sha256 {sha256(new)}, recorded .* sha256 {sha256(old)}"):
        fetch(settings)
    assert not (folder / "config.json").exists()


def test_small_file_of_another_revision_is_refused_before_the_record_says_so(
    hub: FaultyHub, settings: FetchSettings
) -> None:
    """Of equal size and untouched, it was taken for the new one, and recorded as of the new revision."""
    folder = fetch(settings)
    before = Record.read(folder)
    old, new = hub.files["config.json"], hub.files["config.json"][::-1]
    hub.files["config.json"] = new
    with pytest.raises(FetchError, match=f"with git [0-9a-f]{{40}}, recorded .* sha256 {sha256(old)}"):
        fetch(replace(settings, revision="v2"))
    assert (folder / "config.json").read_bytes() == old
    assert Record.read(folder) == before


@pytest.mark.parametrize("known_bytes", [5000, 5001])
def test_known_file_is_refused_before_anything_comes(
    hub: FaultyHub, settings: FetchSettings, monkeypatch: pytest.MonkeyPatch, known_bytes: int
) -> None:
    repository = "baichuan-inc/Baichuan2-7B-Base"
    known = {(repository, "tokenizer.model"): FileDigest(known_bytes, "f" * 64)}
    monkeypatch.setattr("baichuan2_tpu.fetch.models.KNOWN_FILES", known)
    with pytest.raises(
        FetchError, match=f"5000 bytes with sha256 .*, known are {known_bytes} bytes with sha256 fff"
    ):
        fetch(settings)
    assert asked_files(hub) == set()


def test_tokenizer_of_the_chat_model_is_known_by_heart(hub: FaultyHub, settings: FetchSettings) -> None:
    with pytest.raises(
        FetchError, match="known are 2001107 bytes with sha256 79452955be6b419a65984273a9f08af8"
    ):
        fetch(settings, "baichuan2-7b-chat")


def test_revision_that_is_asked_for_is_not_taken_from_the_record(
    hub: FaultyHub, settings: FetchSettings
) -> None:
    folder = fetch(settings)
    hub.requests.clear()
    assert fetch(replace(settings, revision=COMMIT)) == folder
    assert hub.requests == []
    fetch(replace(settings, revision="v2"))
    assert hub.requests[0].path.endswith("/revision/v2")


def test_disk_without_room_is_told_before_anything_comes(
    hub: FaultyHub, settings: FetchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=100 << 20))
    fetch(settings)
    assert settings.folder is not None
    shutil.rmtree(settings.folder)
    hub.requests.clear()
    with pytest.raises(
        FetchError, match=r"and 5\.0 GB for what is made of it, the disk has 0\.1 GB free; free some"
    ):
        fetch(replace(settings, spare_bytes=5_000_000_000))
    assert asked_files(hub) == set()


def test_two_at_once_do_not_meet(hub: FaultyHub, settings: FetchSettings) -> None:
    refused: list[str] = []

    def ask_too(name: str, sent: bytes) -> None:
        if not refused:
            with pytest.raises(RequestError) as caught:
                fetch(settings)
            refused.append(str(caught.value))

    hub.after_bytes = ask_too
    fetch(settings)
    assert "is being written by another process; wait for it" in refused[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 2}',
        '{"format": 1, "source": "x"}',
        '{"format": 1, "source": "", "repository": "", "revision": "", "wanted": ["../x"], "files": {}}',
        '{"format": 2, "source": "", "repository": "", "revision": "", "wanted": ["x"], "files": {}}',
    ],
)
def test_damaged_record_is_named(hub: FaultyHub, settings: FetchSettings, folder: Path, text: str) -> None:
    fetch(settings)
    (folder / WORK_NAME / "record.json").write_text(text)
    with pytest.raises(FetchError, match=r"record\.json: .*; remove it; files that are unchanged are kept"):
        fetch(settings)
    (folder / WORK_NAME / "record.json").unlink()
    hub.requests.clear()
    fetch(settings)
    assert asked_files(hub) == set()


def test_copy_that_was_verified_is_whole_without_the_network(
    hub: FaultyHub, settings: FetchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy has other times of change: nothing was damaged, and yet it was not whole."""
    folder = fetch(replace(settings, folder=None))
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    assert find_fetched(MODEL) is None
    assert find_damage(folder) == {}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_fetched(MODEL) == fetch(replace(settings, folder=None)) == folder


def test_verifying_what_is_right_writes_nothing(
    hub: FaultyHub, settings: FetchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(settings)
    monkeypatch.setattr("baichuan2_tpu.fetch.verify.locked_folder", pytest.fail)
    assert find_damage(folder) == {}


def test_folder_that_cannot_be_written_is_verified(
    hub: FaultyHub, settings: FetchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(settings)
    os.utime(folder / WEIGHTS, (1, 1))
    number = errno.EROFS

    def refuse(_: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("baichuan2_tpu.fetch.verify.locked_folder", refuse)
    assert find_damage(folder) == {}
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        find_damage(folder)


def test_verifying_beside_a_fetch_writes_over_nothing(
    hub: FaultyHub, settings: FetchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(settings)
    (folder / "config.json").unlink()
    with locked_folder(folder / WORK_NAME), pytest.raises(RequestError, match="being written by another"):
        find_damage(folder)
    stale, fresh = Record.read(folder), Record("modelscope", "", "", ())
    fresh.write(folder)
    reads = iter([stale, fresh])
    monkeypatch.setattr(Record, "read", lambda _: next(reads))
    assert set(find_damage(folder)) == {"config.json"}
    monkeypatch.undo()
    assert Record.read(folder) == fresh


def test_nothing_to_verify_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="nothing was fetched into it"):
        find_damage(tmp_path)


def test_unfinished_model_is_damaged(hub: FaultyHub, settings: FetchSettings, folder: Path) -> None:
    hub.faults.extend(["", "", "", "404"])
    with pytest.raises(FetchError):
        fetch(settings)
    assert find_damage(folder) == {WEIGHTS: "is missing"}


def test_folder_that_cannot_be_made_is_named(hub: FaultyHub, settings: FetchSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RequestError, match="cannot make the directory"):
        fetch(replace(settings, folder=tmp_path / "file" / "model"))


def test_other_faults_of_the_disk_are_not_called_full(
    hub: FaultyHub, settings: FetchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(PermissionError):
        fetch(settings)


def test_known_digest_is_that_of_the_real_file() -> None:
    path = Path(__file__).resolve().parents[4] / "shared" / "data" / "baichuan2-tokenizer" / "tokenizer.model"
    if not path.is_file():
        pytest.skip("Baichuan2's tokenizer.model is not at hand")
    known = record.KNOWN_FILES["baichuan-inc/Baichuan2-7B-Chat", "tokenizer.model"]
    content = path.read_bytes()
    assert known == FileDigest(len(content), sha256(content))


def test_record_is_plain_json(hub: FaultyHub, settings: FetchSettings) -> None:
    values = json.loads((fetch(settings) / WORK_NAME / "record.json").read_text())
    assert set(values) == {"format", "source", "repository", "revision", "wanted", "files"}
