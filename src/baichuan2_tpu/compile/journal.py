"""The record of an unfinished build: what is built, from which source, and which nets are finished.

It lies in the work folder. A finished net is two files: its skeleton, and its weights, which move into the
bmodel at the end. A record of other settings or another source counts as none. Not here: building.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

from baichuan2_tpu.bmodel.weights import digest_range
from baichuan2_tpu.errors import CompileError
from baichuan2_tpu.files import FileDigest, check_plain_name, read_json, read_values, write_json
from baichuan2_tpu.manifest import NetCost

__all__ = ["FinishedUnit", "Journal"]

_NAME = "journal.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class FinishedUnit:
    """One finished net. ``code`` is the digest that bmodels have of its weights."""

    skeleton: FileDigest
    weights: FileDigest
    code: str
    costs: tuple[NetCost, ...]


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the file holds."""

    task: Mapping[str, object]
    units: Mapping[str, FinishedUnit]
    moved: Mapping[str, int]


@dataclass(slots=True)
class Journal:
    """``task`` says what is built; ``moved`` says where in the bmodel a unit's weights begin by now."""

    folder: Path
    task: dict[str, object]
    is_begun_anew: bool = False
    """True when the folder held a record of another task."""
    units: dict[str, FinishedUnit] = field(default_factory=dict[str, FinishedUnit])
    moved: dict[str, int] = field(default_factory=dict[str, int])

    @classmethod
    def open(cls, folder: Path, task: dict[str, object]) -> Journal:
        """Continue the record in ``folder`` if it is of the same task, or begin a new one.

        Side effect: the files of finished units are hashed; a unit with one that differs is not finished.
        """
        task = cast("dict[str, object]", json.loads(json.dumps(task)))  # tuples become lists, as in the file
        record = _read(folder / _NAME)
        if record is None or record.task != task:
            return cls(folder, task, is_begun_anew=record is not None)
        journal = cls(folder, task, moved={**record.moved})
        for name, unit in record.units.items():
            if journal.holds(name, unit):
                journal.units[name] = unit
            else:
                journal.moved.pop(name, None)
        return journal

    @property
    def bmodel(self) -> Path:
        """The bmodel that is written at the end."""
        return self.folder / "bundle" / "model.bmodel"

    def skeleton(self, name: str) -> Path:
        """Where the skeleton of a finished unit is."""
        return self.folder / "units" / f"{name}.bmodel"

    def weights(self, name: str) -> Path:
        """Where the weights of a finished unit are, until they move."""
        return self.folder / "units" / f"{name}.weights"

    def holds(self, name: str, unit: FinishedUnit) -> bool:
        """Tell whether the files of a unit are there and unchanged, its weights in either place."""
        skeleton, weights = self.skeleton(name), self.weights(name)
        if not unit.skeleton.is_at(skeleton):
            return False
        if weights.is_file():
            return unit.weights.is_at(weights)
        if name not in self.moved or not self.bmodel.is_file():
            return False
        return digest_range(self.bmodel, self.moved[name], unit.weights.nbytes) == unit.weights.sha256

    def add(self, name: str, unit: FinishedUnit) -> None:
        """Record a finished unit."""
        self.units[name] = unit
        self.write()

    def add_moved(self, name: str, start: int) -> None:
        """Record that the weights of a unit lie at ``start`` of the bmodel."""
        self.moved[name] = start
        self.write()

    def write(self) -> None:
        """Write the record, all at once."""
        values: dict[str, object] = {
            "format": _FORMAT,
            "task": self.task,
            "units": {name: asdict(unit) for name, unit in self.units.items()},
            "moved": self.moved,
        }
        write_json(self.folder / _NAME, values)


def _read(path: Path) -> _Stored | None:
    """Return the record, or None where there is none that can be used."""
    try:
        values = read_json(path, CompileError)
        if values.pop("format", None) != _FORMAT:
            return None
        record = read_values(_Stored, values)
        for name in (*record.units, *record.moved):
            check_plain_name(name)
    except (CompileError, ValueError):
        return None
    return record
