"""From the options of a verb to an open model: what every verb that runs one does first.

Not here: quantising (``resolve``), the engines themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from baichuan2_tpu.cli.terminal import byte_bars, file_events, notice

if TYPE_CHECKING:
    from pathlib import Path

    from baichuan2_tpu.chat import Conversation
    from baichuan2_tpu.config import ModelConfig
    from baichuan2_tpu.engine.base import Engine
    from baichuan2_tpu.generate.settings import GenerationSettings

__all__ = [
    "AnswerSettings",
    "EngineSettings",
    "check_memory",
    "open_conversation",
    "open_model",
    "read_config",
    "resolve",
]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Where and how to run; None leaves it to the model or the machine."""

    engine: str = "auto"
    device: int = 0
    context: int | None = None
    threads: int | None = None
    is_exact: bool = False


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How to answer, as far as the user said; None leaves it to the checkpoint's generation_config.json."""

    system: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: Sequence[str] | None = None

    def over(self, defaults: GenerationSettings) -> GenerationSettings:
        """Put what the user said over a checkpoint's defaults.

        Raises: RequestError naming a value that is not allowed.
        """
        sampling = replace(
            defaults.sampling,
            temperature=_first(self.temperature, defaults.sampling.temperature),
            top_p=_first(self.top_p, defaults.sampling.top_p),
            top_k=_first(self.top_k, defaults.sampling.top_k),
            min_p=_first(self.min_p, defaults.sampling.min_p),
            repetition_penalty=_first(self.repetition_penalty, defaults.sampling.repetition_penalty),
            seed=self.seed,
        )
        return replace(
            defaults,
            sampling=sampling,
            max_tokens=_first(self.max_tokens, defaults.max_tokens),
            stop=tuple(self.stop or ()),
        )


_Value = TypeVar("_Value")


def _first(said: _Value | None, default: _Value) -> _Value:
    return default if said is None else said


def resolve(model: str) -> Path:
    """Return the directory of the quantised checkpoint or the bundle behind ``model``.

    Side effect: what is not there yet is fetched and quantised into the user's cache, with progress.
    """
    from baichuan2_tpu.resolve import resolve_model

    with byte_bars("fetching", "quantising") as (fetching, quantising):
        return resolve_model(model, notice=notice, progress=file_events(quantising), fetch_progress=fetching)


def open_model(directory: Path, settings: EngineSettings) -> Engine:
    """Open the engine of a quantised checkpoint or a bundle.

    What runs on this machine's processor is checked against its memory first.
    Raises: ContextLengthError with the numbers, and what the engine raises.
    """
    from baichuan2_tpu.engine.registry import open_engine
    from baichuan2_tpu.manifest import find_bmodel, is_bundle

    context = settings.context
    is_compiled = is_bundle(directory) or find_bmodel(directory) is not None
    if settings.engine in ("auto", "cpu") and not is_compiled:
        context = check_memory(read_config(directory), context)
    if settings.engine == "simulator":
        _keep_simulator_output()
    engine = open_engine(
        directory,
        engine=settings.engine,
        device=settings.device,
        context=context,
        threads=settings.threads,
        is_exact=settings.is_exact,
    )
    if engine.is_simulated:
        notice("running on the simulator of a BM1684X: the same tokens, slowly; no measure of its speed")
    return engine


def _keep_simulator_output() -> None:
    """On a terminal, send what the simulator prints to a file: a line a launch would stand in the answer."""
    import platformdirs

    from baichuan2_tpu.engine.device.c_library import send_c_output_to_file

    if not sys.stderr.isatty():
        return
    path = platformdirs.user_state_path("baichuan2-tpu", appauthor=False) / "simulator.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        send_c_output_to_file(path)
    except OSError:
        return  # it stays on standard error
    notice(f"what the simulator prints goes to {path}")


@contextmanager
def open_conversation(
    model: str, running: EngineSettings, answering: AnswerSettings
) -> Generator[tuple[Engine, Conversation], None, None]:
    """Open a model, its tokenizer and a conversation with it; everything is closed behind.

    Raises: whatever is wrong with the name, the files, or a setting; settings are checked before loading.
    """
    from baichuan2_tpu.chat import Conversation
    from baichuan2_tpu.generate.settings import read_settings
    from baichuan2_tpu.text.registry import open_tokenizer
    from baichuan2_tpu.text.template import open_template

    directory = resolve(model)
    settings = answering.over(read_settings(directory))
    tokenizer = open_tokenizer(directory)
    template = open_template(directory, tokenizer)
    with (
        open_model(directory, running) as engine,
        Conversation(engine, tokenizer, template, settings, system=answering.system) as conversation,
    ):
        yield engine, conversation


def read_config(directory: Path) -> ModelConfig:
    """Return the dimensions of a checkpoint."""
    from baichuan2_tpu.config import ModelConfig

    return ModelConfig.read(directory / "config.json")


def check_memory(config: ModelConfig, context: int | None) -> int:
    """Return the context to open a model with; None asks for the model's own, or the longest that fits.

    Raises: ContextLengthError with the numbers when a context the user asked for cannot fit.
    """
    from baichuan2_tpu.memory import check_context, machine_memory_bytes, memory_need

    limit = machine_memory_bytes()
    longest = max(1, memory_need(config).longest_context(limit))
    chosen = context or min(config.max_context, longest)
    check_context(config, chosen, limit)
    if context is None and chosen < config.max_context:
        notice(f"context shortened to {chosen} of the model's {config.max_context} tokens: memory is short")
    return chosen
