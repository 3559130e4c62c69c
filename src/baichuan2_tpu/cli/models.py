"""From the name that a user gives to an open model, with notices and progress on standard error.

Not here: finding and opening (``baichuan2_tpu.model``), the options of a verb (``options``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from baichuan2_tpu.cli.terminal import byte_bar, byte_bars, file_events, notice

if TYPE_CHECKING:
    from baichuan2_tpu.checkpoint.identify import Located
    from baichuan2_tpu.generate.settings import GivenSettings
    from baichuan2_tpu.model import EngineSettings, Model, ModelFiles
    from baichuan2_tpu.resolve import ResolveSettings

__all__ = ["find_model", "open_chat_model", "open_model", "resolve"]


def resolve(model: str, settings: ResolveSettings | None = None) -> Located:
    """Return where the quantised checkpoint or the compiled model behind ``model`` lies.

    Side effect: what is not there yet is fetched and quantised into the user's cache, with progress.
    """
    from baichuan2_tpu.resolve import resolve_model

    with byte_bars("fetching", "quantising") as (fetching, quantising):
        return resolve_model(
            model, settings, notice=notice, progress=file_events(quantising), fetch_progress=fetching
        )


def find_model(model: str) -> ModelFiles:
    """Find the files of a model and read all of them but the weights.

    Side effect: as ``resolve``.
    """
    from baichuan2_tpu.model import ModelFiles

    return ModelFiles.read(model, resolve(model))


def open_model(files: ModelFiles, running: EngineSettings) -> Model:
    """Load the weights. Raises: what ``ModelFiles.open`` raises."""
    with byte_bar("loading") as progress:
        model = files.open(running, notice=notice, progress=progress)
    model.engine.on_notice = notice
    return model


def open_chat_model(model: str, running: EngineSettings, given: GivenSettings) -> Model:
    """Open a model to chat with, once its template is found and the settings are allowed.

    Raises: what is wrong with the name, the files, or a setting, before the weights are read.
    """
    files = find_model(model)
    files.require_template()
    files.settings.override(**given)
    return open_model(files, running)
