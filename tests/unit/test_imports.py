"""Imports run one way through the package; an arrow against the design's order fails here.

The order is the table below: a module may import from lower layers, and inside its own part. Two parts of one
layer do not know each other. ``_native`` holds compiled code and is a leaf with few users.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import baichuan2_tpu

PACKAGE = "baichuan2_tpu"
SOURCE = Path(__file__).resolve().parents[2] / "src" / PACKAGE
LAYERS: list[set[str]] = [
    {"errors"},
    {"files", "markdown", "programs"},
    {"config"},
    {"manifest", "bmodel", "shapes"},
    {"checkpoint", "text"},
    {"fetch"},
    {"toolchain"},
    {"engine", "memory", "compile", "reference"},
    {"generate"},
    {"quantize"},
    {"resolve"},
    {"chat"},
    {"bench", "server", "evaluate", "estimate"},
    {"doctor"},
    {"cli"},
    {"__main__"},
]
NATIVE_USERS = {"quantize", "engine", "bench"}


def part_of(module: str) -> str:
    """Return the first name below the package: "engine" for "baichuan2_tpu.engine.cpu"."""
    return module.split(".")[1] if "." in module else ""


def layer_of(part: str) -> int:
    matches = [index for index, parts in enumerate(LAYERS) if part in parts]
    assert len(matches) == 1, f"{part} has no place in the order of imports; give it one in LAYERS"
    return matches[0]


def imported_modules(path: Path) -> Iterator[str]:
    """Yield every module of the package that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith(f"{PACKAGE}."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            module = node.module or ""
            if module == PACKAGE:
                yield from (f"{module}.{name.name}" for name in node.names if name.name != "__version__")
            elif module.startswith(f"{PACKAGE}."):
                yield module


def arrows() -> list[tuple[str, str]]:
    """Return (importing part, imported module) for the whole package."""
    found: list[tuple[str, str]] = []
    for path in sorted(SOURCE.rglob("*.py")):
        part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if part != "__init__":
            found += [(part, module) for module in imported_modules(path)]
    return found


@pytest.mark.parametrize(("part", "module"), sorted(set(arrows())))
def test_import_runs_down_the_layers(part: str, module: str) -> None:
    target = part_of(module)
    if target == "_native":
        assert part in NATIVE_USERS, f"{part} imports {module}; only {NATIVE_USERS} may"
        return
    is_down = part == target or layer_of(target) < layer_of(part)
    assert is_down, f"{part} imports {module}, which lies above or beside it"


def test_every_module_has_a_place_in_the_order() -> None:
    parts = {
        path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    for part in parts - {"__init__"}:
        layer_of(part)


def test_the_package_root_imports_no_part() -> None:
    assert list(imported_modules(SOURCE / "__init__.py")) == []
    assert baichuan2_tpu.__version__
