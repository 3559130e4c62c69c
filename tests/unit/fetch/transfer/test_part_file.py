"""The journal of an unfinished file: what it says is there is there, and a damaged one counts as none."""

from pathlib import Path

import pytest

from baichuan2_tpu.fetch.transfer.hubs import RemoteFile
from baichuan2_tpu.fetch.transfer.part_file import PartFile, Piece
from baichuan2_tpu.files import Digest

WANTED = RemoteFile("file", 100, Digest("sha256", "0" * 64))


def write(folder: Path, *pieces: Piece) -> Path:
    """Write ranges and return the journal."""
    with PartFile(folder, WANTED) as part:
        for piece in pieces:
            part.write(piece.start, bytes([piece.start + 1]) * (piece.stop - piece.start))
            part.add(piece)
    return folder / "file.part.journal"


def missing(folder: Path, wanted: RemoteFile = WANTED, piece_bytes: int = 40) -> list[tuple[int, int]]:
    with PartFile(folder, wanted) as part:
        return [(piece.start, piece.stop) for piece in part.missing(piece_bytes)]


def test_missing_ranges_lie_between_the_finished_ones(tmp_path: Path) -> None:
    assert missing(tmp_path) == [(0, 40), (40, 80), (80, 100)]
    write(tmp_path, Piece(40, 80), Piece(0, 10))
    assert missing(tmp_path) == [(10, 40), (80, 100)]
    assert missing(tmp_path, piece_bytes=25) == [(10, 35), (35, 40), (80, 100)]
    write(tmp_path, Piece(10, 40), Piece(80, 100))
    assert missing(tmp_path) == []


def test_half_a_line_at_the_end_is_ignored_and_does_not_join_the_next(tmp_path: Path) -> None:
    journal = write(tmp_path, Piece(0, 10))
    with journal.open("a") as file:
        file.write("1")
    write(tmp_path, Piece(0 + 20, 30))
    assert journal.read_text().splitlines()[1:] == ["0 10", "20 30"]


@pytest.mark.parametrize(
    "line", ["5 1", "0 101", "-1 5", "a b", "1", "1 2 3", "", "5 15", "0 ١", "0 " + "9" * 5000]
)
def test_line_that_cannot_be_makes_the_journal_none(tmp_path: Path, line: str) -> None:
    journal = write(tmp_path, Piece(0, 10))
    with journal.open("a") as file:
        file.write(f"{line}\n")
    assert missing(tmp_path) == [(0, 40), (40, 80), (80, 100)]


def test_journal_that_is_no_text_is_none(tmp_path: Path) -> None:
    write(tmp_path, Piece(0, 10)).write_bytes(b"\xff\xfe")
    assert missing(tmp_path)[0] == (0, 40)


@pytest.mark.parametrize(
    "wanted", [RemoteFile("file", 100, Digest("sha256", "1" * 64)), RemoteFile("file", 99, WANTED.digest)]
)
def test_part_of_another_file_is_begun_again(tmp_path: Path, wanted: RemoteFile) -> None:
    write(tmp_path, Piece(0, 10))
    assert missing(tmp_path, wanted)[0] == (0, 40)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"short")])
def test_journal_without_its_part_is_none(tmp_path: Path, damage: object) -> None:
    write(tmp_path, Piece(0, 10))
    assert callable(damage)
    damage(tmp_path / "file.part")
    assert missing(tmp_path)[0] == (0, 40)
    assert (tmp_path / "file.part").stat().st_size == 100


def test_proven_part_gets_its_name_and_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, Piece(0, 100))
    part = PartFile(tmp_path, WANTED)
    part.become(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"\x01" * 100
