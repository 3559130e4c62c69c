"""Where C libraries print; each case is a process of its own, for there is no way back."""

import subprocess
import sys
from pathlib import Path

import pytest

PRINT_AND_ABORT = """
import ctypes, os, sys
from pathlib import Path
from baichuan2_tpu.engine.device.c_library import send_c_output_to_file, send_c_output_to_stderr
libc = ctypes.CDLL(None)
if len(sys.argv) > 1:
    send_c_output_to_file(Path(sys.argv[1]))
send_c_output_to_stderr()
send_c_output_to_stderr()
print("answer", flush=True)
libc.puts(b"chatter")
os.abort()
"""


def outcome(*words: Path) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PRINT_AND_ABORT, *map(str, words)], capture_output=True, text=True, check=False
    )
    return done.stdout, done.stderr


def test_c_libraries_print_to_standard_error() -> None:
    assert outcome() == ("answer\n", "chatter\n")


def test_a_file_that_was_chosen_stays_chosen_and_holds_all_before_an_abort(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("of another run")
    assert outcome(log) == ("answer\n", "")
    assert log.read_text() == "chatter\n"


@pytest.mark.parametrize("name", ["", "no-such-folder/log"])
def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path, name: str) -> None:
    assert "Error: [Errno" in outcome(tmp_path / name)[1]
