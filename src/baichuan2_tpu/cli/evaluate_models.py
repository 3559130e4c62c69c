"""Find and open what ``baichuan2 evaluate`` compares: engines, and float checkpoints as they are.

Not here: the options (``evaluate``), scoring (``baichuan2_tpu.evaluate``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.cli.models import find_model, open_model
from baichuan2_tpu.cli.terminal import byte_bar, notice
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.evaluate import EngineScorer, FloatScorer, Subject
from baichuan2_tpu.manifest import Manifest
from baichuan2_tpu.model import EngineSettings, Model, ModelFiles
from baichuan2_tpu.reference.float_model import FloatModel
from baichuan2_tpu.resolve import KNOWN_MODELS, find_source
from baichuan2_tpu.text.registry import open_tokenizer
from baichuan2_tpu.text.template import ChatTemplate, find_template
from baichuan2_tpu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from baichuan2_tpu.checkpoint.identify import Located

__all__ = ["Candidate", "EngineCandidate", "FloatCandidate", "find_reference", "find_subject"]

_FLOAT = "float"


class Candidate(Protocol):
    """A model to be scored, whose files are here; no weight is read before ``open``."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the user called it."""

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, open already."""

    @property
    @abstractmethod
    def is_float(self) -> bool:
        """Whether float weights are scored as they are."""

    @abstractmethod
    def open(self) -> AbstractContextManager[Subject]:
        """Open what computes and give the model to be scored. Raises: what opening raises."""

    @abstractmethod
    def check_head(self) -> None:
        """Check that the logits of all tokens can be had, which a score needs. Raises: RequestError."""


@dataclass(frozen=True, slots=True)
class EngineCandidate:
    """A quantised checkpoint or a compiled model, scored by the engine that runs it."""

    files: ModelFiles
    running: EngineSettings

    @property
    def name(self) -> str:
        """What the user called it."""
        return self.files.name

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.files.tokenizer

    @property
    def is_float(self) -> bool:
        """No: an engine runs it."""
        return False

    @contextmanager
    def open(self) -> Generator[Subject, None, None]:
        """Open the engine and give the model to be scored."""
        with open_model(self.files, self.running) as model:
            yield Subject(
                name=self.name,
                engine_name=model.engine.name + (", exact" if self.running.is_exact else ""),
                weights=_describe_weights(model),
                config=model.config,
                scorer=EngineScorer(model.engine),
                tokenizer=model.tokenizer,
                template=model.template,
                engine=model.engine,
            )

    def check_head(self) -> None:
        """Check that a bundle gives the logits of all tokens."""
        if self.files.located.kind != "bundle":
            return
        output = Manifest.read(self.files.located.path).head_output
        if output != "logits":
            raise RequestError(
                f"{self.name} was compiled with --head-output {output}, and a score needs the logits of all "
                "tokens; use the checkpoint, or a bundle compiled with --head-output logits"
            )


@dataclass(frozen=True, slots=True)
class FloatCandidate:
    """A float checkpoint or a GGUF file, scored by the float32 reference model."""

    name: str
    checkpoint: FloatCheckpoint
    tokenizer: Tokenizer
    template: ChatTemplate | None

    @classmethod
    def find(cls, name: str, source: Path) -> FloatCandidate:
        """Open the files at ``source``.

        Raises: CheckpointError.
        """
        checkpoint = FloatCheckpoint.open(source)
        with checkpoint.tokenizer_files() as directory:
            tokenizer = open_tokenizer(directory)
            return cls(name, checkpoint, tokenizer, find_template(directory, tokenizer))

    @property
    def is_float(self) -> bool:
        """Yes: nothing runs it but the reference."""
        return True

    @contextmanager
    def open(self) -> Generator[Subject, None, None]:
        """Give the model to be scored; its weights are read layer by layer."""
        yield Subject(
            name=self.name,
            engine_name="numpy",
            weights="float32",
            config=self.checkpoint.config,
            scorer=FloatScorer(FloatModel(self.checkpoint)),
            tokenizer=self.tokenizer,
            template=self.template,
            engine=None,
        )

    def check_head(self) -> None:
        """Do nothing: float weights give all logits."""


def find_subject(model: str, running: EngineSettings, *, is_compared: bool) -> EngineCandidate:
    """Find a quantised checkpoint or a compiled model.

    Of two that are compared, each takes of the settings what it can: one may run on the cpu, one on a device.
    Side effect: what is not there yet is fetched and quantised.
    Raises: what is wrong with the name or the files.
    """
    files = find_model(model)
    return EngineCandidate(files, _leave_out(running, files.located) if is_compared else running)


def find_reference(model: str, running: EngineSettings) -> Candidate:
    """Find what a model is compared with; with engine auto, a float checkpoint stays as it is.

    Side effect: as above.
    Raises: as above.
    """
    if running.engine == _FLOAT or (running.engine == "auto" and not _is_known_bmodel(model)):
        with byte_bar("fetching") as progress:
            source = find_source(model, notice, progress)
        if running.engine == _FLOAT or source.kind in ("float", "gguf"):
            return FloatCandidate.find(model, source.path)
    return find_subject(model, running, is_compared=True)


def _is_known_bmodel(model: str) -> bool:
    """Tell whether a known name is that of a compiled model, which has no source."""
    known = KNOWN_MODELS.get(model)
    return known is not None and known.bits is None


def _leave_out(running: EngineSettings, located: Located) -> EngineSettings:
    """Leave out what only the other kind of engine has."""
    if located.is_compiled:
        return replace(running, threads=None, is_exact=False)
    return replace(running, device=0)


def _describe_weights(model: Model) -> str:
    """Say how many bits the weights have, as far as it is known."""
    if model.kind == "bundle":
        return f"{Manifest.read(model.files.located.path).bits} bits"
    return f"{model.config.quantization.bits} bits" if model.config.quantization else ""
