"""Read the pickle of a PyTorch state dict as data: no object is made, no function is called.

A pickle is a program for a stack machine. ``torch.save`` uses two dozen of its instructions, and these are
carried out here on plain values: a tensor becomes a view of a storage that is not read yet. Any other
instruction, and any function but the few that rebuild tensors, is refused by its name. Nothing nested is
hashed, compared or printed, for a stranger chooses how deep it is. A list is read only where bitsandbytes
keeps how a tensor was quantised: its items become entries NAME.0, NAME.1 and so on.
Not here: the zip around it and the numbers (``torch_file``).
Source: ``torch/serialization.py`` and ``torch/_utils.py`` of PyTorch 2.5; ``pickletools`` of Python for the
instructions.
"""

from __future__ import annotations

import math
import pickletools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quoting import quote, shorten

__all__ = ["PICKLE_LIMIT_BYTES", "Numbers", "Storage", "TensorView", "read_state_dict"]

PICKLE_LIMIT_BYTES = 8 << 20
"""The largest pickle that is read: that of the 7B has 30 kB."""

_STORAGES = {
    "BFloat16Storage": "BF16",
    "HalfStorage": "F16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "CharStorage": "I8",
    "ByteStorage": "U8",
}
_FUNCTIONS = {
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
    "torch Size",
}
_TYPES = ("torch float16", "torch bfloat16", "torch float32", "torch uint8")
_LIST_ENDING = ".quant_state"
_MOST_LISTS = 3
"""Lists in lists: bitsandbytes needs three."""
_MOST_ITEMS = 16
_MOST_DIMENSIONS = 32
"""Of a tensor: numpy's limit before version 2."""
_MOST_DEPTH = 4
"""Tuples in tuples: ``torch.save`` needs two."""
_LARGEST = 1 << 62
"""No count or size in a file is larger."""


class _Damage(Exception):  # noqa: N818 - it never leaves this module
    """What is wrong with the pickle."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in a member of the zip. Units: ``elements`` counts numbers."""

    key: str
    dtype: str
    elements: int


@dataclass(frozen=True, slots=True)
class TensorView:
    """A view of a storage. Units: ``offset`` and ``strides`` count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Whole numbers that stand in the pickle itself."""

    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _StorageType:
    """Stands for a class like ``torch.BFloat16Storage``."""

    dtype: str


@dataclass(frozen=True, slots=True)
class _Function:
    """Stands for one of the functions that are known."""

    name: str


@dataclass(frozen=True, slots=True)
class _Tuple:
    items: tuple[object, ...]
    depth: int


@dataclass(frozen=True, slots=True)
class _Dictionary:
    entries: dict[str, object]


@dataclass(frozen=True, slots=True)
class _List:
    items: list[object]


def read_state_dict(path: Path, pickled: bytes) -> dict[str, TensorView | Numbers]:
    """Return the tensors of a pickled state dict by name; ``path`` is for messages alone.

    Raises: CheckpointError naming the file, and what it holds that is no tensor.
    """
    try:
        value = _Machine(path).run(pickled)
    except _Damage as error:
        raise CheckpointError(
            f"{path}: its pickle is damaged, or torch.save did not write it ({error}); fetch the file again"
        ) from error
    if not isinstance(value, _Dictionary):
        raise CheckpointError(f"{path}: holds {_describe(value)}, allowed is a dictionary of tensors")
    views: dict[str, TensorView | Numbers] = {}
    for name, view in value.entries.items():
        if isinstance(view, _List) and name.endswith(_LIST_ENDING):
            views |= _read_list(name, view)
        elif not isinstance(view, TensorView):
            raise CheckpointError(
                f"{path}: {quote(name)} is {_describe(view)}, allowed are tensors only; "
                "save the state dict alone, with torch.save(model.state_dict(), …)"
            )
        else:
            views[name] = view
    return views


def _read_list(name: str, values: _List, depth: int = 1) -> dict[str, TensorView | Numbers]:
    """Return the tensors and the whole numbers of a list, and of the lists in it, by their places."""
    views: dict[str, TensorView | Numbers] = {}
    for place, item in enumerate(values.items[:_MOST_ITEMS]):
        key = f"{name}.{place}"
        match item:
            case TensorView():
                views[key] = item
            case int() if not isinstance(item, bool):
                views[key] = Numbers((item,))
            case _Tuple(items=items) if items and all(type(size) is int for size in items):
                views[key] = Numbers(_counts(item))
            case _List() if depth < _MOST_LISTS:
                views |= _read_list(key, item, depth + 1)
            case _:
                pass  # a name, a type, or nothing
    return views


class _Machine:
    """The stack machine, with the instructions that ``torch.save`` writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}
        self._instructions: Mapping[str, Callable[[object], None]] = {
            "PROTO": lambda _: None,
            "FRAME": lambda _: None,
            "MARK": lambda _: self._marks.append(len(self._stack)),
            "NONE": lambda _: self._stack.append(None),
            "NEWTRUE": lambda _: self._stack.append(True),
            "NEWFALSE": lambda _: self._stack.append(False),
            "BININT": self._push_integer,
            "BININT1": self._push_integer,
            "BININT2": self._push_integer,
            "LONG1": self._push_integer,
            "BINFLOAT": self._stack.append,
            "BINUNICODE": self._stack.append,
            "SHORT_BINUNICODE": self._stack.append,
            "EMPTY_DICT": lambda _: self._stack.append(_Dictionary({})),
            "EMPTY_LIST": lambda _: self._stack.append(_List([])),
            "APPEND": lambda _: self._extend_list(self._pop(1)),
            "APPENDS": lambda _: self._extend_list(self._pop_to_mark()),
            "EMPTY_TUPLE": lambda _: self._push_tuple([]),
            "TUPLE1": lambda _: self._push_tuple(self._pop(1)),
            "TUPLE2": lambda _: self._push_tuple(self._pop(2)),
            "TUPLE3": lambda _: self._push_tuple(self._pop(3)),
            "TUPLE": lambda _: self._push_tuple(self._pop_to_mark()),
            "SETITEM": lambda _: self._set_items(self._pop(2)),
            "SETITEMS": lambda _: self._set_items(self._pop_to_mark()),
            "BINPUT": self._remember,
            "LONG_BINPUT": self._remember,
            "MEMOIZE": lambda _: self._remember(len(self._memo)),
            "BINGET": self._recall,
            "LONG_BINGET": self._recall,
            "GLOBAL": self._push_global,
            "STACK_GLOBAL": lambda _: self._push_global(" ".join(self._pop_names())),
            "BINPERSID": lambda _: self._stack.append(_storage(*self._pop(1))),
            "REDUCE": lambda _: self._stack.append(self._call(*self._pop(2))),
            "BUILD": lambda _: self._build(*self._pop(2)),
        }

    def run(self, pickled: bytes) -> object:
        """Carry out a pickle and return what it leaves.

        Raises: _Damage, CheckpointError.
        """
        for name, argument in _parse(pickled):
            if name == "STOP":
                if len(self._stack) != 1:
                    raise _Damage(f"{len(self._stack)} values are left at its end")
                return self._stack[0]
            instruction = self._instructions.get(name)
            if instruction is None:
                raise _Damage(f"it has the instruction {name}")
            instruction(argument)
        raise _Damage("it has no end")

    def _pop(self, count: int) -> list[object]:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) - count < floor:
            raise _Damage("it takes more from its stack than is there")
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def _pop_to_mark(self) -> list[object]:
        if not self._marks:
            raise _Damage("it goes back to a mark that is not there")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _push_integer(self, value: object) -> None:
        if not isinstance(value, int) or abs(value) > _LARGEST:
            raise _Damage("it holds a number that is not a count")
        self._stack.append(value)

    def _push_tuple(self, items: list[object]) -> None:
        depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
        if depth > _MOST_DEPTH or len(items) > _MOST_DIMENSIONS:
            raise _Damage(f"it has a tuple of {len(items)} values, {depth} deep")
        self._stack.append(_Tuple(tuple(items), depth))

    def _set_items(self, items: list[object]) -> None:
        (target,) = self._pop(1)
        self._stack.append(target)
        if not isinstance(target, _Dictionary) or len(items) % 2:
            raise _Damage("it fills something else than a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise _Damage(f"the key of an entry is {_describe(key)}, allowed is text")
            target.entries[key] = value

    def _extend_list(self, items: list[object]) -> None:
        (target,) = self._pop(1)
        self._stack.append(target)
        if not isinstance(target, _List):
            raise _Damage("it extends something else than a list")
        target.items.extend(items)

    def _pop_names(self) -> list[str]:
        names = [name for name in self._pop(2) if isinstance(name, str)]
        if len(names) != 2:
            raise _Damage("it asks for a function whose name is not a text")
        return names

    def _remember(self, index: object) -> None:
        (value,) = self._pop(1)
        self._stack.append(value)
        if isinstance(index, int):
            self._memo[index] = value

    def _recall(self, index: object) -> None:
        if not isinstance(index, int) or index not in self._memo:
            raise _Damage("it recalls what it has not remembered")
        self._stack.append(self._memo[index])

    def _push_global(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        if module == "torch" and name in _STORAGES:
            self._stack.append(_StorageType(_STORAGES[name]))
        elif argument in _TYPES:
            self._stack.append(None)
        elif argument in _FUNCTIONS:
            self._stack.append(_Function(name))
        else:
            raise CheckpointError(
                f"{self._path}: its pickle asks for {shorten(f'{module}.{name}')}, allowed are tensors only; "
                "nothing was run, do not trust this file"
            )

    def _call(self, function: object, arguments: object) -> object:
        if not isinstance(function, _Function) or not isinstance(arguments, _Tuple):
            raise _Damage(f"it calls {_describe(function)}")
        match function.name, arguments.items:
            case "OrderedDict", ():
                return _Dictionary({})
            case "Size", (_Tuple() as sizes,):
                return sizes
            case "_rebuild_parameter", (data, *_):
                return data
            case "_rebuild_tensor_v2", (storage, offset, shape, strides, *_):
                return _view(storage, offset, shape, strides)
            case name, items:
                raise _Damage(f"it gives {name} {len(items)} arguments")

    def _build(self, target: object, state: object) -> None:
        """Pass over what is attached to a dictionary: versions of torch's modules."""
        if not isinstance(target, _Dictionary) or not isinstance(state, _Dictionary):
            raise _Damage(f"it attaches {_describe(state)} to {_describe(target)}")
        self._stack.append(target)


def _parse(pickled: bytes) -> Iterator[tuple[str, object]]:
    """Yield the name and the argument of every instruction."""
    with warnings.catch_warnings():
        # Of damaged text Python only warns that it will not be read any more one day.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            for opcode, argument, _ in pickletools.genops(pickled):
                yield opcode.name, argument
        except (ValueError, DeprecationWarning, OverflowError, MemoryError) as error:
            raise _Damage(shorten(str(error))) from error


def _storage(pid: object) -> Storage:
    """Return the storage that a persistent id names."""
    match pid.items if isinstance(pid, _Tuple) else ():
        case ("storage", _StorageType() as kind, str() as key, str(), int() as elements) if elements >= 0:
            return Storage(key, kind.dtype, elements)
        case _:
            raise _Damage(f"the persistent id is {_describe(pid)}, which does not name a storage")


def _view(storage: object, offset: object, shape: object, strides: object) -> TensorView:
    """Return a view of a storage that lies within it."""
    sizes, steps = _counts(shape), _counts(strides)
    if not isinstance(storage, Storage) or not isinstance(offset, int) or len(sizes) != len(steps):
        raise _Damage("a tensor is rebuilt from something else than a storage")
    last = offset + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    if offset < 0 or (math.prod(sizes) > 0 and last >= storage.elements):
        raise _Damage(
            f"a tensor of shape {sizes} ends at {last}, storage {quote(storage.key)} has {storage.elements}"
        )
    return TensorView(storage, offset, sizes, steps)


def _counts(value: object) -> tuple[int, ...]:
    """Return a tuple of integers that are not negative."""
    items = value.items if isinstance(value, _Tuple) else (None,)
    counts = tuple(item for item in items if isinstance(item, int) and item >= 0)
    if len(counts) != len(items):
        raise _Damage(f"{_describe(value)} is not a tensor shape")
    return counts


def _describe(value: object) -> str:
    """Name a value without looking into it."""
    match value:
        case str() | int() | float():
            return quote(value)
        case None:
            return "None"
        case _Tuple(items=items):
            return f"a tuple of {len(items)} values"
        case _Dictionary():
            return "a dictionary"
        case _List():
            return "a list"
        case _:
            return f"a {type(value).__name__.strip('_')}"
