"""How many tokens of prompts a step takes, and how waiting prompts share them.

Not here: which requests run (``scheduler``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["Pace", "shares"]

# A 7B reads its weights for 16 tokens about as fast as for one; it is a compiled model's smallest piece too.
_LEAST_TOKENS = 16


class Pace:
    """Learns how long a token of a prompt takes.

    ``prompt_piece`` is the most to feed at once. Units: ``max_pause_s`` for a step in which answers wait.
    """

    def __init__(self, prompt_piece: int, max_pause_s: float) -> None:
        self._prompt_piece = prompt_piece
        self._max_pause_s = max_pause_s
        self._most_tokens = _LEAST_TOKENS

    def budget(self, answering: int) -> int:
        """Return how many tokens of prompts to feed beside the tokens of that many answers."""
        if answering == 0:
            return self._prompt_piece
        return min(max(self._most_tokens - answering, _LEAST_TOKENS), self._prompt_piece)

    def note(self, tokens: int, elapsed_s: float) -> None:
        """Learn from a step with prompts in it.

        A step takes a fixed time and a time a token. Supposing it all in proportion, step after step, ends at
        the tokens that take ``max_pause_s``.
        """
        self._most_tokens = int(tokens * self._max_pause_s / max(elapsed_s, 1e-9))


def shares(budget: int, needs: Sequence[int]) -> list[int]:
    """Deal tokens to prompts, of which ``needs`` are left, the oldest first.

    The shortest have one half, so that they need not wait for long ones; the oldest the other, so that none
    waits for ever.
    """
    given = [0] * len(needs)
    shortest = sorted(range(len(needs)), key=needs.__getitem__)
    _deal(budget // 2, needs, given, shortest)
    _deal(budget - sum(given), needs, given, range(len(needs)))
    return given


def _deal(budget: int, needs: Sequence[int], given: list[int], order: Iterable[int]) -> None:
    for place in order:
        more = min(needs[place] - given[place], budget)
        given[place] += more
        budget -= more
