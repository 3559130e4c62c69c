"""Show an answer while it grows.

Not here: making it (``generate``, ``chat``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from baichuan2_tpu.cli.terminal import notice, write_result

if TYPE_CHECKING:
    from baichuan2_tpu.chat import ChatEvent
    from baichuan2_tpu.generate.loop import Result

__all__ = ["collect_answer", "show_answer"]


def collect_answer(events: Iterable[ChatEvent]) -> Result:
    """Read an answer to its end and return it."""
    from baichuan2_tpu.generate.loop import Result

    *_, last = events
    assert isinstance(last, Result), "the last event of an answer is its result"  # noqa: S101 - our invariant
    return last


def show_answer(events: Iterable[ChatEvent]) -> Result:
    """Write an answer to standard output as it comes, and what is to be said about it to standard error."""
    result = collect_answer(_shown(events))
    write_result("\n")
    if result.finish_reason == "length":
        notice(f"[cut at {len(result.token_ids)} tokens; --max-tokens and --context set the limit]")
    return result


def _shown(events: Iterable[ChatEvent]) -> Iterable[ChatEvent]:
    """Pass events on after showing what is in them."""
    from baichuan2_tpu.chat import RoundsDropped
    from baichuan2_tpu.generate.loop import TextPiece

    for event in events:
        if isinstance(event, TextPiece):
            write_result(event.text)
        elif isinstance(event, RoundsDropped):
            notice(f"[the context is full; oldest rounds left out: {event.rounds}]")
        yield event
