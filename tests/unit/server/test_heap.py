"""Threads that share the heap, counted in a process of their own."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

COUNT_ARENAS = """
import ctypes, os, tempfile
from threading import Barrier, Thread
from baichuan2_tpu.server.heap import limit_arenas

limit_arenas()
libc, together = ctypes.CDLL(None), Barrier(12)
libc.fdopen.restype = libc.malloc.restype = ctypes.c_void_p

def allocate():
    together.wait()
    for _ in range(100):
        libc.malloc(100_000)
    together.wait()

threads = [Thread(target=allocate) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
with tempfile.TemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fdopen(os.dup(file.fileno()), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    file.seek(0)
    print(file.read().count(b"<heap "))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no arenas")
def test_twelve_threads_share_two_arenas() -> None:
    """After minutes of attacks the server held 1.1 GB, in holes of more than a dozen arenas."""
    run = subprocess.run([sys.executable, "-c", COUNT_ARENAS], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "2"
