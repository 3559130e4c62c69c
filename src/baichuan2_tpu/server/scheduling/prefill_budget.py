"""How many prompt tokens a step feeds, and how waiting prompts share them.

Not here: which requests run (``step``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["PrefillBudget", "deal_tokens"]

# A 7B reads its weights for 16 tokens about as fast as for one; it is a compiled model's smallest piece too.
_MIN_TOKENS = 16


class PrefillBudget:
    """Learns how many prompt tokens make a step longer by ``max_pause_s``.

    ``prompt_piece`` is the most to feed at once.
    """

    def __init__(self, prompt_piece: int, max_pause_s: float) -> None:
        self._prompt_piece = prompt_piece
        self._max_pause_s = max_pause_s
        self._max_tokens = _MIN_TOKENS
        self._answers_s = 0.0  # the latest step without prompts

    def tokens(self, *, is_answering: bool) -> int:
        """Return how many prompt tokens to feed; few while answers wait for their next token."""
        return min(self._max_tokens, self._prompt_piece) if is_answering else self._prompt_piece

    def learn(self, prompt_tokens: int, elapsed_s: float) -> None:
        """Learn from a step that fed ``prompt_tokens`` and took ``elapsed_s``."""
        if prompt_tokens == 0:
            self._answers_s = elapsed_s
            return
        longer_s = max(elapsed_s - self._answers_s, 1e-9)
        tokens = int(prompt_tokens * self._max_pause_s / longer_s)
        # At most doubled: the step before may have been slow for another reason.
        self._max_tokens = max(_MIN_TOKENS, min(tokens, 2 * self._max_tokens))


def deal_tokens(budget: int, needs: Sequence[int]) -> list[int]:
    """Divide a budget among prompts, the oldest first, of which ``needs`` tokens are left to feed.

    Half goes to the shortest prompts, so that they need not wait for long ones; the other half to the oldest,
    so that none waits for ever.
    """
    shares = [0] * len(needs)
    shortest = sorted(range(len(needs)), key=needs.__getitem__)
    _deal(budget // 2, needs, shares, shortest)
    _deal(budget - sum(shares), needs, shares, range(len(needs)))
    return shares


def _deal(budget: int, needs: Sequence[int], shares: list[int], order: Iterable[int]) -> None:
    for index in order:
        more = min(needs[index] - shares[index], budget)
        shares[index] += more
        budget -= more
