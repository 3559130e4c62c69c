"""Where C libraries print, in a process of its own, for there is no way back."""

import subprocess
import sys

PRINT_AND_ABORT = """
import ctypes, os
from baichuan2_tpu.engine.device.c_library import send_c_output_to_stderr
libc = ctypes.CDLL(None)
send_c_output_to_stderr()
send_c_output_to_stderr()
print("answer", flush=True)
libc.puts(b"chatter")
os.abort()
"""


def test_c_libraries_print_to_standard_error() -> None:
    command = [sys.executable, "-c", PRINT_AND_ABORT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("answer\n", "chatter\n")
