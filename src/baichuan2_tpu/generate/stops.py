"""Stop strings in a stream of text: no part of one is ever shown, wherever the stream is cut.

Not here: stop ids (``answer``).
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopStrings"]


class StopStrings:
    """Holds back text that may be the beginning of a stop string.

    The stop string that is complete first wins; of several that end at one place, the longest. So the text
    before it does not depend on how the stream is cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that was found; nothing may be pushed after it."""
        return self._matched

    def push(self, text: str) -> str:
        """Return the text that is now known to be no part of a stop string."""
        pending = self._held + text
        ends = [(start + len(stop), start) for stop in self._stops if (start := pending.find(stop)) >= 0]
        if ends:
            end, start = min(ends)
            self._matched, self._held = pending[start:end], ""
            return pending[:start]
        kept = self._possible_start(pending)
        self._held = pending[len(pending) - kept :]
        return pending[: len(pending) - kept]

    def flush(self) -> str:
        """Return what was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """Return the length of the longest end of ``text`` that begins a stop string."""
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
