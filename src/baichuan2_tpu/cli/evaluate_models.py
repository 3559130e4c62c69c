"""Find and open what ``baichuan2 evaluate`` compares: engines, and float checkpoints as they are.

Not here: the options (``evaluate``), scoring (``baichuan2_tpu.evaluate``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.gguf_tokenizer import check_tokenizer, write_tokenizer
from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.cli.models import EngineSettings, open_model, resolve
from baichuan2_tpu.cli.terminal import byte_bar, notice
from baichuan2_tpu.errors import CheckpointError, RequestError
from baichuan2_tpu.evaluate import EngineScorer, FloatScorer, Subject
from baichuan2_tpu.manifest import Manifest, find_bmodel, is_bundle
from baichuan2_tpu.reference.float_model import FloatModel
from baichuan2_tpu.resolve import KNOWN_MODELS, find_source
from baichuan2_tpu.text.registry import open_tokenizer
from baichuan2_tpu.text.template import open_template
from baichuan2_tpu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from baichuan2_tpu.config import ModelConfig
    from baichuan2_tpu.engine.base import Engine
    from baichuan2_tpu.evaluate.passages import Scorer
    from baichuan2_tpu.text.template import ChatTemplate

__all__ = ["FoundModel", "find_reference", "find_subject"]

_FLOAT = "float"


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model whose files are there and whose tokenizer is open; no weight is read before ``opened``."""

    name: str
    directory: Path
    running: EngineSettings
    tokenizer: Tokenizer
    template: ChatTemplate | None
    floats: FloatCheckpoint | None = None
    """Float weights, which are scored as they are; None for what an engine runs."""

    @contextmanager
    def opened(self) -> Generator[Subject, None, None]:
        """Open the engine, if there is one, and give the model to be scored.

        Raises: what opening raises.
        """
        if self.floats is not None:
            yield self._subject(self.floats, "numpy", "float32", FloatScorer(FloatModel(self.floats)))
            return
        with open_model(self.directory, self.running) as engine:
            name = engine.name + (", exact" if self.running.is_exact else "")
            yield self._subject(engine, name, _weights(self.directory, engine.config), EngineScorer(engine))

    def check_head(self) -> None:
        """Check that a bundle gives the logits of all tokens, which a score needs.

        Raises: RequestError.
        """
        if not is_bundle(self.directory):
            return
        output = Manifest.read(self.directory).head_output
        if output != "logits":
            raise RequestError(
                f"{self.name} was compiled with --head-output {output}, and a score needs the logits of all "
                "tokens; use the checkpoint, or a bundle compiled with --head-output logits"
            )

    def _subject(
        self, model: Engine | FloatCheckpoint, engine_name: str, weights: str, scorer: Scorer
    ) -> Subject:
        return Subject(
            name=self.name,
            engine_name=engine_name,
            weights=weights,
            config=model.config,
            scorer=scorer,
            tokenizer=self.tokenizer,
            template=self.template,
            engine=None if isinstance(model, FloatCheckpoint) else model,
        )


def find_subject(model: str, running: EngineSettings, *, is_compared: bool) -> FoundModel:
    """Find a quantised checkpoint or a compiled model.

    Of two that are compared, each takes of the settings what it can: one may run on the cpu, one on a device.
    Side effect: what is not there yet is fetched and quantised.
    Raises: what is wrong with the name or the files.
    """
    directory = resolve(model)
    if is_compared:
        running = _fitting(running, directory)
    tokenizer = open_tokenizer(directory)
    return FoundModel(model, directory, running, tokenizer, _template(directory, tokenizer))


def find_reference(model: str, running: EngineSettings) -> FoundModel:
    """Find what a model is compared with; with engine auto, a float checkpoint stays as it is.

    Side effect: as above.
    Raises: as above.
    """
    if running.engine == _FLOAT or (running.engine == "auto" and not _is_known_bmodel(model)):
        with byte_bar("fetching") as progress:
            source = find_source(model, notice, progress)
        if running.engine == _FLOAT or identify(source) in ("float", "gguf"):
            return _find_float(model, source, running)
    return find_subject(model, running, is_compared=True)


def _is_known_bmodel(model: str) -> bool:
    """Tell whether a known name is that of a compiled model, which has no source."""
    known = KNOWN_MODELS.get(model)
    return known is not None and known.bits is None


def _find_float(model: str, source: Path, running: EngineSettings) -> FoundModel:
    """Find a float checkpoint or a GGUF file, whose tokenizer is written out to be read."""
    checkpoint = FloatCheckpoint.open(source)
    with tempfile.TemporaryDirectory(prefix="baichuan2-tokenizer-") as scratch:
        directory = source
        if checkpoint.metadata is not None:
            directory = Path(scratch)
            check_tokenizer(source, checkpoint.metadata)
            write_tokenizer(checkpoint.metadata, directory)
        tokenizer = open_tokenizer(directory)
        return FoundModel(model, source, running, tokenizer, _template(directory, tokenizer), checkpoint)


def _fitting(running: EngineSettings, directory: Path) -> EngineSettings:
    """Leave out what only the other kind of engine has."""
    if is_bundle(directory) or find_bmodel(directory):
        return replace(running, threads=None, is_exact=False)
    return replace(running, device=0)


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
