"""How a person talks to a chat: a line editor on a terminal, plain lines from anything else, Ctrl-C.

In both a trailing backslash continues the message on the next line; on a terminal Alt-Enter does too.
Not here: what a message means (``chat_commands``).
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import platformdirs

if TYPE_CHECKING:
    from prompt_toolkit.history import History

__all__ = ["LineReader", "is_interactive", "open_history", "open_reader", "read_message", "stoppable"]

LineReader = Callable[[str], str]
"""Shows a prompt and returns a line; raises EOFError at the end and KeyboardInterrupt for Ctrl-C."""

_PROMPT = "> "
_CONTINUATION = "… "


def is_interactive() -> bool:
    """Tell whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def open_reader() -> LineReader:
    """Return a line editor with history on a terminal, else a reader of plain lines.

    Side effect: on a terminal, a history file that only its owner can read, in the user's state folder.
    """
    return _line_editor(_history_file()) if is_interactive() else _read_plain_line


def read_message(read_line: LineReader) -> str:
    """Return one message, of one or more lines.

    Raises: EOFError when there is none left; KeyboardInterrupt for Ctrl-C.
    """
    lines = [read_line(_PROMPT)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read_line(_CONTINUATION))
    return "\n".join(lines)


@contextmanager
def stoppable() -> Generator[Callable[[], bool], None, None]:
    """Give a function that tells whether Ctrl-C was pressed, so that work ends between two tokens.

    A second Ctrl-C raises KeyboardInterrupt as ever.
    Side effect: the handler of SIGINT is replaced, and put back at the end.
    """
    pressed = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


def _read_plain_line(prompt: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def _history_file() -> Path | None:
    """Return the file for lines typed, or None where it cannot be written: a chat works without."""
    path = platformdirs.user_state_path("baichuan2-tpu", appauthor=False) / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return None
    return path


def _line_editor(history: Path | None) -> LineReader:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def insert_line_feed(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(history=open_history(history), key_bindings=keys)
    return session.prompt


def open_history(file: Path | None) -> History:
    """Return the lines typed before; without a file, or on a full disk, those of this chat only."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class LinesFile(FileHistory):
        def store_string(self, string: str) -> None:
            with suppress(OSError):
                super().store_string(string)

    return InMemoryHistory() if file is None else LinesFile(str(file))
