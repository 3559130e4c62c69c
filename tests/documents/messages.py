"""Every message in the source as a pattern that any values fit, to compare quotations in documents with.

Not here: which messages documents quote.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_LEAST_LETTERS = 16
"""A form with fewer letters of its own, such as a path and a cause, would let anything pass."""


def message_forms(source: Path) -> list[re.Pattern[str]]:
    """Return a pattern for every text in the modules below a folder."""
    trees = [ast.parse(path.read_text("utf-8")) for path in sorted(source.rglob("*.py"))]
    forms = {_form(node) for tree in trees for node in _texts(tree)}
    return [re.compile(form, re.DOTALL) for form in sorted(forms) if form]


def _texts(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield every whole text: the parts of one with values are not texts of their own."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str)
        ):
            yield node
        else:
            yield from _texts(node)


def _form(node: ast.expr) -> str:
    """Return a pattern in which every value may be anything, or nothing for a text with few letters."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    own = [part.value if isinstance(part, ast.Constant) else None for part in parts]
    if sum(character.isalpha() for text in own for character in str(text or "")) < _LEAST_LETTERS:
        return ""
    return "".join(".*?" if text is None else re.escape(str(text)) for text in own)
