"""What reaches the user's terminal: answers made harmless, notices, and progress.

Text of a model, or out of a file, may hold escape sequences that move the cursor, change the title or paste
into the shell. Here every control character but line feed and tab is dropped; without its ESC a sequence is
plain text. Not here: what is written.
Source: ECMA-48, control functions C0 and C1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from baichuan2_tpu.quantize import Progress, QuantizeEvent

__all__ = [
    "byte_bar",
    "byte_bars",
    "file_events",
    "notice",
    "printable",
    "progress_bar",
    "reading_line",
    "write_result",
]

ByteProgress = Callable[[int, int], None]
TokenProgress = Callable[[int, int], None]

_DROPPED = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Return ``text`` without control characters; line feeds and tabs stay."""
    return text.translate(_DROPPED)


def write_result(text: str) -> None:
    """Write a piece of the result to standard output, at once."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def notice(text: str) -> None:
    """Write one line to standard error."""
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()


@contextmanager
def reading_line() -> Generator[TokenProgress | None, None, None]:
    """Give a callback for the tokens read and all tokens of a prompt, or None where there is no terminal.

    It draws a line on standard error and wipes it when all are read, or at the end of ``with``. A prompt that
    is read at once draws none.
    """
    if not sys.stderr.isatty():
        yield None
        return
    width = 0

    def draw(read_tokens: int, all_tokens: int) -> None:
        nonlocal width
        text = f"reading {read_tokens}/{all_tokens}" if read_tokens < all_tokens else ""
        if text or width:
            # Spaces, which every terminal knows, wipe what was longer.
            sys.stderr.write(f"\r{text}" if text else f"\r{'':{width}}\r")
            sys.stderr.flush()
        width = len(text)

    try:
        yield draw
    finally:
        draw(0, 0)


@contextmanager
def progress_bar(title: str) -> Generator[Progress | None, None, None]:
    """Give a callback for events that draws a bar on standard error, or None where that is no terminal."""
    with byte_bar(title) as draw:
        yield file_events(draw)


def file_events(draw: ByteProgress | None) -> Progress | None:
    """Return a callback for events of quantising that draws their bytes."""
    if draw is None:
        return None

    def draw_event(event: QuantizeEvent) -> None:
        draw(event.done_bytes, event.total_bytes)

    return draw_event


@contextmanager
def byte_bar(title: str) -> Generator[ByteProgress | None, None, None]:
    """Give a callback for done and total bytes that draws a bar on standard error, or None as above."""
    with byte_bars(title) as (draw,):
        yield draw


@contextmanager
def byte_bars(*titles: str) -> Generator[list[ByteProgress | None], None, None]:
    """Give a callback for each title, whose bar shows from its first call; only one group can be open."""
    if not sys.stderr.isatty():
        yield [None for _ in titles]
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    # This very stream: whatever runs meanwhile may be kept quiet by another in its place.
    with Bars(console=Console(file=sys.stderr), transient=True) as bars:

        def make_draw(title: str) -> ByteProgress:
            task = bars.add_task(title, visible=False)
            return lambda done, total: bars.update(task, completed=done, total=total, visible=done < total)

        yield [make_draw(title) for title in titles]
