"""How many tokens of prompts a step takes, and how waiting prompts share them.

Not here: which requests run (``scheduler``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["Pace", "shares"]

# A 7B reads its weights for 16 tokens about as fast as for one; it is a compiled model's smallest piece too.
_LEAST_TOKENS = 16


class Pace:
    """Learns how many tokens of prompts make a step longer by ``max_pause_s``.

    ``prompt_piece`` is the most to feed at once.
    """

    def __init__(self, prompt_piece: int, max_pause_s: float) -> None:
        self._prompt_piece = prompt_piece
        self._max_pause_s = max_pause_s
        self._most_tokens = _LEAST_TOKENS
        self._answers_s = 0.0  # the latest step without prompts

    def budget(self, *, is_answering: bool) -> int:
        """Return how many tokens of prompts to feed; few while answers wait for their next token."""
        return min(self._most_tokens, self._prompt_piece) if is_answering else self._prompt_piece

    def note(self, prompt_tokens: int, elapsed_s: float) -> None:
        """Learn from a step with so many tokens of prompts in it."""
        if prompt_tokens == 0:
            self._answers_s = elapsed_s
            return
        longer_s = max(elapsed_s - self._answers_s, 1e-9)
        tokens = int(prompt_tokens * self._max_pause_s / longer_s)
        # Twice as many at most: the step before may have been slow for another reason.
        self._most_tokens = max(_LEAST_TOKENS, min(tokens, 2 * self._most_tokens))


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
