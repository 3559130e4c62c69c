"""A folder to work in is ours alone, and nothing of others is touched on the way."""

from pathlib import Path

import pytest

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.files import LOCK_NAME, locked_folder


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    # DST.partial as a link to somebody's folder with a file "lock" was cleaned as if it were ours.
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / LOCK_NAME).write_text("important")
    (tmp_path / "q.partial").symlink_to(theirs)
    with (
        pytest.raises(RequestError, match=r"q\.partial is a link to .*theirs; remove it or name another"),
        locked_folder(tmp_path / "q.partial"),
    ):
        pass
    assert (theirs / LOCK_NAME).read_text() == "important"


def test_a_lock_that_is_a_link_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("important")
    (tmp_path / "q.partial").mkdir()
    (tmp_path / "q.partial" / LOCK_NAME).symlink_to(tmp_path / "file")
    with (
        pytest.raises(RequestError, match="holds files of something else"),
        locked_folder(tmp_path / "q.partial"),
    ):
        pass
    assert (tmp_path / "file").read_text() == "important"
