"""Show an answer while it grows.

Not here: making it (``generate``, ``chat``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from baichuan2_tpu.cli.terminal import notice, reading_line, write_result

if TYPE_CHECKING:
    from baichuan2_tpu.chat import AnswerPiece
    from baichuan2_tpu.generate.loop import ReadProgress, Result

__all__ = ["show_answer"]


def show_answer(ask: Callable[[ReadProgress | None], Iterable[AnswerPiece]]) -> Result:
    """Write an answer to standard output as it comes, and notices about it to standard error.

    ``ask`` is given what draws how much of the prompt is read, and returns the pieces of the answer.
    """
    from baichuan2_tpu.chat import read_result

    with reading_line() as draw:
        result = read_result(_show(ask(draw)))
    write_result("\n")
    if result.finish_reason == "length":
        notice(f"[cut at {len(result.token_ids)} tokens; --max-tokens and --context set the limit]")
    return result


def _show(pieces: Iterable[AnswerPiece]) -> Iterable[AnswerPiece]:
    """Pass pieces on after showing what is in them."""
    dropped_rounds = 0
    for piece in pieces:
        if piece.dropped_rounds != dropped_rounds:
            dropped_rounds = piece.dropped_rounds
            notice(f"[the context is full; oldest rounds left out: {dropped_rounds}]")
        if piece.text:
            write_result(piece.text)
        yield piece
