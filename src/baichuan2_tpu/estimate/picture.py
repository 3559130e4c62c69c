"""Draw an estimate as stacked bars in SVG: steps of several answers, and the first token of several prompts.

Written here and not with a plotting library: it is a few dozen rectangles, and SVG does not change.
Not here: the figures (``costs``). Source: SVG 1.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from baichuan2_tpu.estimate.costs import USERS, Estimate, Step

__all__ = ["draw"]

# Colours that stay apart for colour-blind eyes. Source: Okabe and Ito, "Color Universal Design".
_COLOURS = {"layers": "#0072b2", "head": "#e69f00", "embedding": "#009e73"}
_ORIGIN = "estimated by the compiler's cycle model, not measured"
_LEFT, _WIDTH, _RIGHT, _ROW, _BAR = 110, 480, 200, 26, 18


@dataclass(frozen=True, slots=True)
class _Bar:
    """One step, what stands before its bar, and what stands behind its time."""

    label: str
    step: Step
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Panel:
    """Bars of one scale below a heading."""

    heading: str
    bars: list[_Bar]


def draw(figures: Estimate, *, title: str) -> str:
    """Return the SVG text of the picture; ``title`` must hold no markup."""
    answers, prompts = list(_answer_panels(figures)), _prompt_panel(figures)
    shared_scale = _scale(bar for panel in answers for bar in panel.bars)
    top, shapes = 70, [_text(12, 24, title, "bold"), _text(12, 42, _ORIGIN), *_legend(figures.decode, 56)]
    for panel in (*answers, prompts):
        scale = _scale(panel.bars) if panel is prompts else shared_scale
        shapes += [_text(12, top + 24, panel.heading, "bold"), *_bars(panel.bars, top + 36, scale)]
        top += 42 + _ROW * len(panel.bars)
    size = f'width="{_LEFT + _WIDTH + _RIGHT}" height="{top + 12}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
            '<rect width="100%" height="100%" fill="white"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def _answer_panels(figures: Estimate) -> Iterator[_Panel]:
    """Yield a panel for each number of rows in use: a token for each user."""
    for rows in figures.histories:
        steps = {users: figures.answers.get((users, rows)) for users in USERS}
        bars = [_answer_bar(users, step) for users, step in steps.items() if step]
        yield _Panel(f"One token for each user, up to {rows} rows in use", bars)


def _answer_bar(users: int, step: Step) -> _Bar:
    label = f"{users} user" if users == 1 else f"{users} users"
    return _Bar(label, step, f", {1000 * users / step.total.time_ms:,.0f} tok/s")


def _prompt_panel(figures: Estimate) -> _Panel:
    bars = [_Bar(str(tokens), step) for tokens, step in figures.first_tokens.items()]
    return _Panel("First token, by tokens of the prompt", bars)


def _scale(bars: Iterable[_Bar]) -> float:
    """Return the pixels per millisecond with which the longest bar fills the width."""
    return _WIDTH / max(bar.step.total.time_ms for bar in bars)


def _legend(step: Step, y: int) -> Iterator[str]:
    for number, name in enumerate(step.parts()):
        x = 12 + 110 * number
        yield f'<rect x="{x}" y="{y}" width="12" height="12" fill="{_COLOURS[name]}"/>'
        yield _text(x + 18, y + 11, name)


def _bars(bars: list[_Bar], top: int, scale: float) -> Iterator[str]:
    """Draw one bar per step. Units: ``scale`` is pixels per millisecond."""
    for number, bar in enumerate(bars):
        x, y = float(_LEFT), top + _ROW * number
        yield _text(_LEFT - 10, y + 14, bar.label, anchor="end")
        for name, cost in bar.step.parts().items():
            width = cost.time_ms * scale
            yield f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{_COLOURS[name]}"/>'
            x += width
        yield _text(x + 8, y + 14, f"{bar.step.total.time_ms:,.1f} ms{bar.note}")


def _text(x: float, y: float, words: str, weight: str = "normal", *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-weight="{weight}" text-anchor="{anchor}">{words}</text>'
