"""The record of an unfinished build: what counts as finished, and what does not."""

from pathlib import Path

import pytest

from baichuan2_tpu.compile.journal import FinishedUnit, Journal
from baichuan2_tpu.files import digest_file
from baichuan2_tpu.manifest import NetCost

TASK: dict[str, object] = {"settings": {"prefill": (16, 64)}}
NAME = "block_cache_0"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A record with one finished unit."""
    (tmp_path / "units").mkdir()
    (tmp_path / "bundle").mkdir()
    journal = Journal.open(tmp_path, TASK)
    journal.skeleton(NAME).write_bytes(b"skeleton")
    journal.weights(NAME).write_bytes(b"weights")
    digests = digest_file(journal.skeleton(NAME)), digest_file(journal.weights(NAME))
    journal.add(NAME, FinishedUnit(*digests, "c0de", (NetCost(NAME, 1, 64, 0.5, 100, 200),)))
    return journal


def test_a_record_of_the_same_task_is_gone_on_with(journal: Journal) -> None:
    again = Journal.open(journal.folder, TASK)
    assert again.units == journal.units
    assert not again.is_begun_anew


def test_a_record_of_another_task_counts_as_none(journal: Journal) -> None:
    again = Journal.open(journal.folder, {"settings": {"prefill": (16,)}})
    assert (again.units, again.moved, again.is_begun_anew) == ({}, {}, True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 0}'])
def test_a_record_that_cannot_be_read_counts_as_none(journal: Journal, text: str) -> None:
    (journal.folder / "journal.json").write_text(text)
    again = Journal.open(journal.folder, TASK)
    assert (again.units, again.is_begun_anew) == ({}, False)


def test_a_unit_with_a_changed_or_missing_file_is_not_finished(journal: Journal) -> None:
    journal.skeleton(NAME).write_bytes(b"sceleton")
    assert Journal.open(journal.folder, TASK).units == {}
    journal.skeleton(NAME).unlink()
    assert Journal.open(journal.folder, TASK).units == {}


@pytest.mark.parametrize(
    ("content", "is_kept"), [(b"---weights", True), (b"---w", False), (b"----------", False)]
)
def test_weights_that_moved_are_looked_for_in_the_bmodel(
    journal: Journal, content: bytes, is_kept: bool
) -> None:
    journal.add_moved(NAME, 3)
    journal.weights(NAME).unlink()
    assert Journal.open(journal.folder, TASK).units == {}
    journal.bmodel.write_bytes(content)
    again = Journal.open(journal.folder, TASK)
    assert (NAME in again.units, NAME in again.moved) == (is_kept, is_kept)
