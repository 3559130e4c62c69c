"""Run Baichuan2 chat models on SOPHON BM1684X TPUs and on any CPU.

The names below are the public ones; each is imported when it is first used, so that importing the package
costs nothing.
"""

TYPE_CHECKING = False  # as typing's, which takes longer to import than everything here

if TYPE_CHECKING:
    from baichuan2_tpu.chat import AnswerPiece, Conversation
    from baichuan2_tpu.compile.driver import compile_bundle
    from baichuan2_tpu.errors import Baichuan2Error
    from baichuan2_tpu.generate.events import Result
    from baichuan2_tpu.generate.settings import GenerationSettings
    from baichuan2_tpu.model import Model, load
    from baichuan2_tpu.quantize import quantize as quantize_checkpoint

    __version__: str

__all__ = [
    "AnswerPiece",
    "Baichuan2Error",
    "Conversation",
    "GenerationSettings",
    "Model",
    "Result",
    "__version__",
    "compile_bundle",
    "load",
    "quantize_checkpoint",
]

_PLACES = {
    "AnswerPiece": ("chat", "AnswerPiece"),
    "Baichuan2Error": ("errors", "Baichuan2Error"),
    "Conversation": ("chat", "Conversation"),
    "GenerationSettings": ("generate.settings", "GenerationSettings"),
    "Model": ("model", "Model"),
    "Result": ("generate.events", "Result"),
    "compile_bundle": ("compile.driver", "compile_bundle"),
    "load": ("model", "load"),
    # Not "quantize": that is the part's own name, which an import of it would put in the function's place.
    "quantize_checkpoint": ("quantize", "quantize"),
}

if not TYPE_CHECKING:  # a checker that saw it would take any name for one that exists

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used."""
        from importlib import import_module  # noqa: PLC0415

        if name == "__version__":
            value = import_module("importlib.metadata").version("baichuan2-tpu")
        elif name in _PLACES:
            module, attribute = _PLACES[name]
            value = getattr(import_module(f"{__name__}.{module}"), attribute)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
