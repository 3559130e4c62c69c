"""The interface of every program, and the description of its job. Knows none of the programs.

Jobs and answers cross between processes as one line of JSON each.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Choice", "Description", "GgufModel", "Job", "Peer", "choose", "made_up_prompt"]


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A GGUF on disk and what its weights take; see ``Description`` for the units."""

    path: str
    formats: str
    block_bytes: int
    head_bytes: int


@dataclass(frozen=True, slots=True)
class Job:
    """The model to build; ``gguf`` is for programs that read one, ``command`` starts one from outside.

    Units: ``context`` counts tokens.
    """

    shape: str
    hidden_size: int
    intermediate_size: int
    layers: int
    bits: int
    threads: int
    context: int
    gguf: GgufModel | None = None
    command: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read what ``json.dumps(asdict(job))`` wrote."""
        values = json.loads(text)
        gguf, command = values.pop("gguf"), tuple(values.pop("command"))
        return cls(**values, gguf=GgufModel(**gguf) if gguf else None, command=command)


@dataclass(frozen=True, slots=True)
class Description:
    """What was built; ``kernels`` are the instruction sets that the program says it computes with.

    Units: ``block_bytes`` and ``head_bytes`` are the weights that one token reads in the layers and in the
    head. ``layers`` may be fewer than the job asked for.
    """

    version: str
    formats: str
    kernels: str
    layers: int
    block_bytes: int
    head_bytes: int
    load_s: float


class Peer(Protocol):
    """One program with its model loaded."""

    description: Description

    def prefill(self, tokens: int) -> float:
        """Read a prompt of ``tokens`` tokens from an empty context; return the seconds until its logits."""
        ...

    def decode(self, prompt_tokens: int, tokens: int) -> float:
        """Return the seconds for ``tokens`` greedy tokens after a prompt, without the prompt's own time."""
        ...


def made_up_prompt(tokens: int) -> list[int]:
    """Return ids that every vocabulary has and that no program treats as special."""
    return [3 + position % 200 for position in range(tokens)]


class Choice(NamedTuple):
    """The greedy token, the one it beat, and by how much. Units: ``gap`` is a difference of logits."""

    token: int
    second: int
    gap: float


def choose(logits: NDArray[np.float32]) -> Choice:
    """Return the greedy choice. Shapes: (V,)."""
    two = np.argpartition(logits, -2)[-2:]
    second, first = two[np.argsort(logits[two])]
    return Choice(int(first), int(second), float(logits[first] - logits[second]))
