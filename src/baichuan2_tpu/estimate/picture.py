"""Draw an estimate as stacked bars in SVG: a token, and the first token of several prompts, by net.

Written here and not with a plotting library: it is a dozen rectangles, and SVG does not change.
Not here: the figures (``costs``). Source: SVG 1.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from baichuan2_tpu.estimate.costs import Estimate, Step

__all__ = ["draw"]

# Colours that stay apart for colour-blind eyes. Source: Okabe and Ito, "Color Universal Design".
_COLOURS = {"layers": "#0072b2", "head": "#e69f00", "embedding": "#009e73"}
_ORIGIN = "estimated by the compiler's cycle model, not measured"
_LEFT, _WIDTH, _RIGHT, _ROW, _BAR = 110, 480, 130, 26, 18


def draw(found: Estimate, *, title: str) -> str:
    """Return the SVG text of the picture; ``title`` must hold no markup."""
    panels = [
        ("One token of the answer", {"": found.decode}),
        ("First token, by tokens of the prompt", {str(n): step for n, step in found.first_tokens.items()}),
    ]
    top, shapes = 70, [_text(12, 24, title, "bold"), _text(12, 42, _ORIGIN), *_legend(found.decode, 56)]
    for heading, steps in panels:
        shapes += [_text(12, top + 24, heading, "bold"), *_bars(steps, top + 36)]
        top += 42 + _ROW * len(steps)
    size = f'width="{_LEFT + _WIDTH + _RIGHT}" height="{top + 12}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
            '<rect width="100%" height="100%" fill="white"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def _legend(step: Step, y: int) -> Iterator[str]:
    for number, name in enumerate(step.parts()):
        x = 12 + 110 * number
        yield f'<rect x="{x}" y="{y}" width="12" height="12" fill="{_COLOURS[name]}"/>'
        yield _text(x + 18, y + 11, name)


def _bars(steps: Mapping[str, Step], top: int) -> Iterator[str]:
    """Draw one bar a step; the longest fills the width."""
    scale = _WIDTH / max(step.total.time_ms for step in steps.values())
    for number, (label, step) in enumerate(steps.items()):
        x, y = float(_LEFT), top + _ROW * number
        yield _text(_LEFT - 10, y + 14, label, anchor="end")
        for name, cost in step.parts().items():
            width = cost.time_ms * scale
            yield f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{_COLOURS[name]}"/>'
            x += width
        yield _text(x + 8, y + 14, f"{step.total.time_ms:,.1f} ms")


def _text(x: float, y: float, words: str, weight: str = "normal", *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-weight="{weight}" text-anchor="{anchor}">{words}</text>'
