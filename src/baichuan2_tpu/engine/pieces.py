"""How a run of new tokens is cut into launches of the compiled stages; the estimate uses the same rule.

Not here: launching them (``bmodel``), what they take (``estimate``).
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["cut_tokens", "launch_cost"]

_LAUNCH_TOKENS = 64
"""A launch reads every weight, in about the time that this many tokens take to multiply."""


def launch_cost(tokens: int) -> int:
    """Return what a launch of a stage takes, in the time that one token takes to multiply."""
    return tokens + _LAUNCH_TOKENS


def cut_tokens(tokens: int, stages: Sequence[int]) -> tuple[int, ...]:
    """Return the stages to launch, in order, for ``tokens`` new tokens; the last may exceed what is left.

    Units: ``stages`` are the tokens of each compiled stage, ascending. Every cut into the largest that fit,
    ended at any point by one that covers the rest, is weighed; the one that takes least time is taken.
    """
    pieces: list[int] = []
    rest, spent = tokens, 0
    least, kept, last = -1, 0, 0
    while True:
        covering = next((stage for stage in stages if stage >= rest), None)
        if covering is not None:
            total = spent + launch_cost(covering)
            if least < 0 or total < least:
                least, kept, last = total, len(pieces), covering
        fitting = [stage for stage in stages if stage < rest]
        if covering == rest or not fitting:
            return (*pieces[:kept], last)
        pieces.append(fitting[-1])
        rest -= fitting[-1]
        spent += launch_cost(fitting[-1])
