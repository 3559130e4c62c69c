"""What can be asked of an engine that knows only the likeliest tokens of a row.

Not here: choosing among them (``sampling``). A repetition penalty of 1 or more is applied among the tokens
that are known: another could come before them only where almost all of these were said before.
"""

from __future__ import annotations

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.generate.settings import GenerationSettings, SamplingSettings

__all__ = ["check_candidates"]


def check_candidates(engine: Engine, settings: GenerationSettings) -> None:
    """Check that the settings need no logit that the engine does not know.

    Raises: RequestError naming the setting, what is known and what can be asked for.
    """
    known = engine.candidates
    if known == engine.config.vocabulary_size:
        return
    if settings.logprobs is not None:
        raise _refusal(engine, "log probabilities need all of them; ask for none")
    if not settings.sampling.is_greedy and not 0 < settings.sampling.top_k <= known:
        raise _refusal(engine, _sampling_advice(settings.sampling.top_k, known))
    _check_penalty(engine, settings.sampling)


def _check_penalty(engine: Engine, sampling: SamplingSettings) -> None:
    """Check that the penalty can change the choice only in favour of a token that is known."""
    penalty = sampling.repetition_penalty
    if engine.candidates == 1 and penalty != 1:
        raise _refusal(
            engine, f"a repetition penalty of {penalty:g} has no other to choose; use --repetition-penalty 1"
        )
    if penalty < 1:
        raise _refusal(
            engine,
            f"a repetition penalty of {penalty:g} could lift another; use --repetition-penalty 1 or more",
        )


def _sampling_advice(top_k: int, known: int) -> str:
    """Say which sampling is possible."""
    if known == 1:
        return "it cannot sample; use --temperature 0, or compile with --head-output sample or logits"
    return f"sampling with top_k {top_k} needs others; use --top-k 1 to {known}, or --temperature 0"


def _refusal(engine: Engine, reason: str) -> RequestError:
    tokens = "token" if engine.candidates == 1 else f"{engine.candidates} tokens"
    return RequestError(f"engine {engine.name} knows only the likeliest {tokens} of each step: {reason}")
