"""Draw an estimate as bars: steps of several answers, and the first token of several prompts.

Not here: the figures (``costs``), drawing (``svg_bars``).
"""

from __future__ import annotations

from collections.abc import Iterator

from baichuan2_tpu.estimate.costs import USERS, Estimate, Step
from baichuan2_tpu.svg_bars import Bar, Panel, draw_bars

__all__ = ["draw"]

_ORIGIN = "estimated by the compiler's cycle model, not measured"


def draw(figures: Estimate, *, title: str) -> str:
    """Return the SVG text of the picture."""
    return draw_bars(title, _ORIGIN, [*_answer_panels(figures), _prompt_panel(figures)])


def _answer_panels(figures: Estimate) -> Iterator[Panel]:
    """Yield a panel for each number of rows in use: a token for each user."""
    for rows in figures.histories:
        steps = {users: figures.answers.get((users, rows)) for users in USERS}
        bars = [_answer_bar(users, step) for users, step in steps.items() if step]
        yield Panel(f"One token for each user, up to {rows} rows in use", bars, "answers")


def _answer_bar(users: int, step: Step) -> Bar:
    label = f"{users} user" if users == 1 else f"{users} users"
    return _bar(label, step, f", {1000 * users / step.total.time_ms:,.0f} tok/s")


def _prompt_panel(figures: Estimate) -> Panel:
    bars = [_bar(str(tokens), step) for tokens, step in figures.first_tokens.items()]
    return Panel("First token, by tokens of the prompt", bars, "prompts")


def _bar(label: str, step: Step, note: str = "") -> Bar:
    parts = {name: cost.time_ms for name, cost in step.parts().items()}
    return Bar(label, parts, f"{step.total.time_ms:,.1f} ms{note}")
