"""Leave a chat in a pseudo-terminal."""

from __future__ import annotations

import pexpect

__all__ = ["leave"]

_TRIES = 30
_WAIT_S = 2


def leave(child: pexpect.spawn[str]) -> None:
    """Type Ctrl-D until the program ends.

    Between two prompts the terminal itself takes the key, and the program never sees it.
    """
    for _ in range(_TRIES):
        child.send("\x04")
        if child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=_WAIT_S) == 0:
            break
    child.close()
