"""Draw stacked horizontal bars as SVG, in panels below each other.

Written here and not with a plotting library: it is a few dozen rectangles, and SVG does not change.
Not here: the figures (``estimate``, ``bench``). Source: SVG 1.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ["Bar", "Panel", "draw_bars"]

# Colours that stay apart for colour-blind eyes. Source: Okabe and Ito, "Color Universal Design".
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442", "#999999")
_WIDTH, _ROW, _BAR = 480, 26, 18
_LETTER = 7.5  # of 13 pixels, on average
_LEGEND_COLUMNS, _LEGEND_WIDTH, _LEGEND_ROW = 4, 190, 18


@dataclass(frozen=True, slots=True)
class Bar:
    """The label before a bar, the length of each part, and a note behind it."""

    label: str
    parts: Mapping[str, float]
    note: str

    @property
    def length(self) -> float:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars below a heading. Panels with the same ``scale`` are drawn with the same length per unit."""

    heading: str
    bars: Sequence[Bar]
    scale: str = ""


def draw_bars(title: str, origin: str, panels: Sequence[Panel]) -> str:
    """Return the SVG text of a picture; ``origin`` says below the title where the figures are from."""
    bars = [bar for panel in panels for bar in panel.bars]
    names = list(dict.fromkeys(name for bar in bars for name in bar.parts))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    shapes = [_text(12, 24, title, "bold"), _text(12, 42, origin)]
    top = 56
    if len(names) > 1:
        shapes += _legend(colours)
        top += _LEGEND_ROW * -(-len(names) // _LEGEND_COLUMNS)
    left = _LETTER * max(len(bar.label) for bar in bars) + 24
    right = _LETTER * max(len(bar.note) for bar in bars) + 24
    for panel in panels:
        shapes.append(_text(12, top + 20, panel.heading, "bold"))
        shapes += _bars(panel, left, top + 32, _longest(panel, panels), colours)
        top += 42 + _ROW * len(panel.bars)
    size = f'width="{left + _WIDTH + right:.0f}" height="{top + 12}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
            '<rect width="100%" height="100%" fill="white"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def _legend(colours: Mapping[str, str]) -> Iterator[str]:
    for number, (name, colour) in enumerate(colours.items()):
        x = 12 + _LEGEND_WIDTH * (number % _LEGEND_COLUMNS)
        y = 56 + _LEGEND_ROW * (number // _LEGEND_COLUMNS)
        yield f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>'
        yield _text(x + 18, y + 11, name)


def _longest(panel: Panel, panels: Iterable[Panel]) -> float:
    """Return the length of the longest bar of a panel's scale."""
    return max(bar.length for other in panels if other.scale == panel.scale for bar in other.bars)


def _bars(panel: Panel, left: float, top: int, longest: float, colours: Mapping[str, str]) -> Iterator[str]:
    """Draw one bar per line; one as long as ``longest`` fills the width."""
    for number, bar in enumerate(panel.bars):
        x, y = left, top + _ROW * number
        yield _text(left - 10, y + 14, bar.label, anchor="end")
        for name, length in bar.parts.items():
            width = length * _WIDTH / longest
            yield f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colours[name]}"/>'
            x += width
        yield _text(x + 8, y + 14, bar.note)


def _text(x: float, y: float, words: str, weight: str = "normal", *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-weight="{weight}" text-anchor="{anchor}">{escape(words)}</text>'
