"""Imports run one way, between the rooms of the package and inside the large ones.

The order is the tables below: a module may import from lower rows, and inside its own room. Two rooms of one
row do not know each other. ``_native`` holds compiled code and is a leaf with few users.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "baichuan2_tpu"
SOURCE = Path(__file__).resolve().parents[2] / "src" / PACKAGE
Table = list[set[str]]
LAYERS: Table = [
    {"quoting"},
    {"errors"},
    {"files", "markdown", "programs", "rope_scaling", "svg_bars"},
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
    {"model"},
    {"bench", "server", "evaluate", "estimate"},
    {"doctor"},
    {"cli"},
    {"__main__"},
]
INSIDE: dict[str, Table] = {
    "checkpoint": [
        {"adapter_settings", "gguf_parts"},
        {"source", "weights"},
        {"extras", "layout", "packing", "prefixes"},
        {"foreign", "formats", "shards", "random_weights"},
        {"adapter", "weight_files"},
        {"identify"},
        {"float_checkpoint", "quantized_checkpoint"},
    ],
    "doctor": [
        {"finding", "system_files"},
        {"host", "need", "tpu"},
        {"judge_host", "tpu_memory"},
        {"judge_tpu", "judge_tpu_memory", "proofs"},
        {"report"},
    ],
    "generate": [
        {"block_hashes", "caller", "stops"},
        {"grammar"},
        {"settings"},
        {"engine_limits", "sampling", "tracked_sequence"},
        {"events"},
        {"answer"},
        {"loop"},
    ],
    "bmodel": [{"fields", "layout"}, {"header", "weights"}],
    "reference": [{"operations"}, {"float_model", "layer"}],
    "engine": [
        {"device", "packed_file", "processors"},
        {"base"},
        {"checks"},
        {"compiled", "cpu"},
        {"registry"},
    ],
    "fetch": [
        {"cache", "catalog"},
        {"record", "transfer", "wheels"},
        {"models", "verify"},
        {"vendor"},
    ],
    "server": [
        {"scheduling", "known_paths", "request_faults"},
        {"errors", "heap", "log_lines", "metrics", "readiness", "tenants"},
        {"callers", "service"},
        {"api", "transport"},
        {"app"},
        {"page"},
    ],
}
"""The order inside a room, by the first name below it."""
NATIVE_USERS = {"quantize", "engine", "bench"}


def names_below(folder: Path) -> set[str]:
    """Return the names of the modules and packages in a folder."""
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    return packages | {path.stem for path in folder.glob("*.py")} - {"__init__"}


def is_module(folder: Path, name: str) -> bool:
    """Tell whether a dotted name below a folder is a module or a package."""
    path = folder.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def row_of(name: str, table: Table) -> int:
    rows = [index for index, names in enumerate(table) if name in names]
    assert len(rows) == 1, f"{name} is in {len(rows)} rows of the table of imports; give it one"
    return rows[0]


def imported_modules(path: Path, *, is_top_only: bool = False) -> Iterator[str]:
    """Yield every module of the package that a file imports, at its top or inside a function."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in tree.body if is_top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith(f"{PACKAGE}."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            module = node.module or ""
            if module == PACKAGE:
                yield from (f"{module}.{name.name}" for name in node.names if name.name != "__version__")
            elif module.startswith(f"{PACKAGE}."):
                names = (f"{module}.{name.name}" for name in node.names)
                yield from (name if is_module(SOURCE.parent, name) else module for name in names)


def files_of(folder: Path, name: str) -> list[Path]:
    """Return the files of a module or package in a folder."""
    module = folder / f"{name}.py"
    return [module] if module.exists() else sorted(folder.glob(f"{name}/**/*.py"))


def wrong_arrows(room: str, name: str, table: Table) -> list[str]:
    """Return every import of a module or package in a room that does not point to a lower row of its table.

    The empty room is the package itself.
    """
    depth = 2 if room else 1
    arrows: list[str] = []
    for path in files_of(SOURCE / room, name):
        for module in imported_modules(path):
            parts = module.split(".")[1:]
            if parts[:1] == ["_native"] or (room and parts[0] != room) or len(parts) < depth:
                continue
            target = parts[depth - 1]
            if target != name and row_of(target, table) >= row_of(name, table):
                arrows.append(f"{path.relative_to(SOURCE)} imports {module}, which is not in a lower row")
    return arrows


@pytest.mark.parametrize("room", sorted(names_below(SOURCE)))
def test_imports_of_a_room_run_down_the_layers(room: str) -> None:
    arrows = wrong_arrows("", room, LAYERS)
    assert not arrows, "\n".join(arrows)


@pytest.mark.parametrize("room", sorted(INSIDE))
def test_imports_inside_a_room_run_down_its_table(room: str) -> None:
    names = sorted(names_below(SOURCE / room))
    arrows = [arrow for name in names for arrow in wrong_arrows(room, name, INSIDE[room])]
    assert not arrows, "\n".join(arrows)


def test_every_module_has_one_place_in_the_order() -> None:
    for folder, table in [(SOURCE, LAYERS), *((SOURCE / room, table) for room, table in INSIDE.items())]:
        for name in names_below(folder):
            row_of(name, table)


def test_compiled_code_has_few_users() -> None:
    users = {
        path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for path in SOURCE.rglob("*.py")
        if any(module.split(".")[1] == "_native" for module in imported_modules(path))
    }
    assert users <= NATIVE_USERS


def test_the_package_root_imports_nothing_at_its_top() -> None:
    code = "import sys; old = set(sys.modules); import baichuan2_tpu; print(*sorted(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [PACKAGE]
