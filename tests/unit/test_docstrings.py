"""A docstring that sends its reader to another module names one that exists."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "baichuan2_tpu"
SENTENCE = re.compile(r"Not here:.*?(?:\.(?=\s)|\.?$)", re.DOTALL)
NAME = re.compile(r"``([a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*)``")


def is_module(folder: Path, name: str) -> bool:
    """Tell whether a dotted name below a folder is a module or a package."""
    path = folder.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def missing_modules(path: Path) -> Iterator[str]:
    """Yield each name in a module's "Not here" that is no module in its package or in one around it."""
    sentence = SENTENCE.search(ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "")
    folders = [folder for folder in path.parents if folder.is_relative_to(PACKAGE.parent)]
    for name in NAME.findall(sentence[0] if sentence else ""):
        if not any(is_module(folder, name) for folder in folders):
            yield f"{path.relative_to(PACKAGE)} names {name}"


def test_not_here_names_modules_that_exist() -> None:
    missing = [name for path in sorted(PACKAGE.rglob("*.py")) for name in missing_modules(path)]
    assert not missing, "\n".join(missing)
