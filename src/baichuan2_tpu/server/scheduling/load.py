"""What a scheduler may use, and what it does: its settings, its load and its totals.

Not here: how Prometheus reads them (``server.metrics``).
"""

from __future__ import annotations

from dataclasses import dataclass

from baichuan2_tpu.engine.base import Engine, RowUse
from baichuan2_tpu.errors import RequestError

__all__ = ["Load", "SchedulerSettings", "Totals", "max_held_tokens"]


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """How many requests are served, and with what.

    At most ``max_running`` answers are generated at once and ``max_waiting`` more requests wait. ``kv_bytes``
    limits the keys and values of running and kept sequences; with None only the engine limits them, by the
    memory that its sequences share, or by their number. ``max_pause_s`` is how much longer new prompts may
    make a step while other answers wait for their next token.

    Raises: RequestError naming the value and the range that is allowed.
    """

    max_running: int = 16
    max_waiting: int = 64
    kv_bytes: int | None = None
    max_pause_s: float = 0.5

    def __post_init__(self) -> None:
        for name, minimum in (("max_running", 1), ("max_waiting", 0), ("max_pause_s", 0)):
            value = getattr(self, name)
            if not value >= minimum:
                raise RequestError(f"{name} is {value}; {minimum} or more is allowed")


@dataclass(frozen=True, slots=True)
class Totals:
    """What was done since the start.

    ``refused`` requests met a full queue; ``preempted`` counts how often an answer was preempted for lack of
    memory and resumed later; ``faults`` are steps that failed. Tokens are counted when a request ends, but
    ``computed_tokens``, of prompts, in the step that computes them.
    """

    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    preempted: int = 0
    faults: int = 0
    computed_tokens: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """What is in work now.

    The prompts of ``reading`` of the ``running`` requests are not read to their end.
    ``held_tokens`` of ``max_held_tokens`` have memory for keys and values, ``kv_bytes_per_token`` each.
    ``rows`` says how an engine uses the memory that its sequences share, if they do. ``is_faulty`` tells
    whether the latest step failed.
    """

    running: int
    reading: int
    waiting: int
    idle_sequences: int
    held_tokens: int
    max_held_tokens: int
    kv_bytes_per_token: int
    rows: RowUse | None
    is_faulty: bool
    totals: Totals


def max_held_tokens(engine: Engine, settings: SchedulerSettings) -> int:
    """Return how many tokens all sequences together may hold.

    Raises: RequestError when one full context does not fit.
    """
    rows = engine.row_use
    most = engine.max_sequences * engine.max_context if rows is None else rows.total
    if settings.kv_bytes is None:
        return most
    token_bytes = engine.kv_bytes_per_token
    if settings.kv_bytes < engine.max_context * token_bytes:
        raise RequestError(
            f"kv_bytes is {settings.kv_bytes}; a context of {engine.max_context} tokens takes "
            f"{engine.max_context * token_bytes}: allow more, or open the model with a smaller context"
        )
    return min(most, settings.kv_bytes // token_bytes)
