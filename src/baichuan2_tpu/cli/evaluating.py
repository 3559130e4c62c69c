"""Open what ``baichuan2 evaluate`` compares: engines, and float checkpoints as they are.

Not here: the options (``evaluate``), scoring (``baichuan2_tpu.evaluate``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from baichuan2_tpu.artifact import Manifest, find_bmodel, is_bundle
from baichuan2_tpu.checkpoint.floats import FloatCheckpoint
from baichuan2_tpu.checkpoint.gguf_tokenizer import check_tokenizer, write_tokenizer
from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.cli.models import EngineSettings, open_model, resolve
from baichuan2_tpu.cli.terminal import notice
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.evaluate import EngineScorer, FloatScorer, Subject
from baichuan2_tpu.float_model import FloatModel
from baichuan2_tpu.resolve import find_source
from baichuan2_tpu.text.registry import open_tokenizer
from baichuan2_tpu.text.template import open_template
from baichuan2_tpu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from baichuan2_tpu.config import ModelConfig
    from baichuan2_tpu.text.template import ChatTemplate

__all__ = ["open_reference", "open_subject"]

_FLOAT = "float"


@contextmanager
def open_subject(
    model: str, directory: Path, running: EngineSettings, *, is_compared: bool
) -> Generator[Subject, None, None]:
    """Open a quantised checkpoint or a compiled model.

    Of two that are compared, each takes of the settings what it can: one may run on the cpu, one on a device.
    Raises: RequestError for an engine that does not know every logit, and what opening raises.
    """
    if is_compared:
        running = _fitting(running, directory)
    tokenizer = open_tokenizer(directory)
    with open_model(directory, running) as engine:
        yield Subject(
            name=model,
            engine_name=engine.name + (", exact" if running.is_exact else ""),
            weights=_weights(directory, engine.config),
            config=engine.config,
            scorer=EngineScorer(engine),
            tokenizer=tokenizer,
            template=_template(directory, tokenizer),
            engine=engine,
        )


@contextmanager
def open_reference(model: str, running: EngineSettings) -> Generator[Subject, None, None]:
    """Open what a model is compared with; with engine auto, a float checkpoint stays as it is.

    Raises: what opening raises.
    """
    if running.engine in ("auto", _FLOAT):
        source = find_source(model, notice)
        if running.engine == _FLOAT or identify(source) in ("float", "gguf"):
            with _open_float(model, source) as subject:
                yield subject
            return
    directory = resolve(model)
    with open_subject(model, directory, running, is_compared=True) as subject:
        yield subject


def _fitting(running: EngineSettings, directory: Path) -> EngineSettings:
    """Leave out what only the other kind of engine has."""
    if is_bundle(directory) or find_bmodel(directory):
        return replace(running, threads=None, is_exact=False)
    return replace(running, device=0)


@contextmanager
def _open_float(model: str, source: Path) -> Generator[Subject, None, None]:
    """Open a float checkpoint or a GGUF file, whose tokenizer is written out to be read."""
    checkpoint = FloatCheckpoint.open(source)
    with tempfile.TemporaryDirectory(prefix="baichuan2-tokenizer-") as scratch:
        directory = source
        if checkpoint.metadata is not None:
            directory = Path(scratch)
            check_tokenizer(source, checkpoint.metadata)
            write_tokenizer(checkpoint.metadata, directory)
        tokenizer = open_tokenizer(directory)
        template = _template(directory, tokenizer)
    yield Subject(
        name=model,
        engine_name="numpy",
        weights="float32",
        config=checkpoint.config,
        scorer=FloatScorer(FloatModel(checkpoint)),
        tokenizer=tokenizer,
        template=template,
        engine=None,
    )


def _weights(directory: Path, config: ModelConfig) -> str:
    """Say how many bits the weights have, as far as it is known."""
    if is_bundle(directory):
        return f"{Manifest.read(directory).bits} bits"
    return f"{config.quantization.bits} bits" if config.quantization else ""


def _template(directory: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    try:
        return open_template(directory, tokenizer)
    except CheckpointError:
        return None  # a base model; only --chat would need one
