"""What can be asked of an engine that knows only the most likely tokens of a row, its candidates.

Penalties are applied to the known candidates only. An unknown token could overtake them only if nearly all
known ones were penalised. Not here: choosing among them (``sampling``).
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
    _check_biased(settings.sampling, engine.config.vocabulary_size)
    known = engine.candidates
    if known == engine.config.vocabulary_size:
        return
    if (settings.logprobs, settings.prompt_logprobs) != (None, None):
        raise _refusal(engine, "log probabilities need all of them; leave them out")
    if settings.grammar is not None:
        raise _refusal(engine, "a grammar may allow none of them; leave the grammar out")
    if not settings.sampling.is_greedy and not 0 < settings.sampling.top_k <= known:
        raise _refusal(engine, _sampling_advice(settings.sampling.top_k, known))
    for name, value, lift in _shifts(settings.sampling):
        if engine.candidates == 1 and lift != 0:
            raise _refusal(engine, f"{name} {value:g} has no other to choose; leave it out")
        if lift > 0:
            raise _refusal(
                engine, f"{name} {value:g} could lift another; only the other direction is possible"
            )


def _check_biased(sampling: SamplingSettings, vocabulary_size: int) -> None:
    for token_id, _ in sampling.logit_bias:
        if not 0 <= token_id < vocabulary_size:
            raise RequestError(
                f"logit_bias names token {token_id}; 0 to {vocabulary_size - 1} are in the vocabulary"
            )


def _shifts(sampling: SamplingSettings) -> list[tuple[str, float, float]]:
    """Return each setting that shifts logits: its name, its value, and how far it lifts (below 0: lowers)."""
    return [
        ("repetition_penalty", sampling.repetition_penalty, 1 - sampling.repetition_penalty),
        ("presence_penalty", sampling.presence_penalty, -sampling.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty, -sampling.frequency_penalty),
        *((f"logit_bias of token {token_id}", bias, bias) for token_id, bias in sampling.logit_bias),
    ]


def _sampling_advice(top_k: int, known: int) -> str:
    """Say which sampling is possible."""
    if known == 1:
        return "it cannot sample; use temperature 0, or compile with --head-output sample or logits"
    return f"sampling with top_k {top_k} needs others; use top_k 1 to {known}, or temperature 0"


def _refusal(engine: Engine, reason: str) -> RequestError:
    tokens = "token" if engine.candidates == 1 else f"{engine.candidates} tokens"
    return RequestError(f"engine {engine.name} knows only the most likely {tokens} of each step: {reason}")
