"""Tables in Markdown, which a terminal shows as well and a report can take as they are."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["markdown_table"]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; a bar inside a cell, which would break it, becomes a slash."""
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in (columns, *rows)]
    return [lines[0], "|---" * len(columns) + "|", *lines[1:]]
