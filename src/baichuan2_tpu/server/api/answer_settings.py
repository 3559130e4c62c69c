"""What chats and completions share when they become requests: settings, seeds, clients.

Not here: their prompts (``chat_input``, ``completion``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from baichuan2_tpu.generate.constraint import Grammar
from baichuan2_tpu.generate.settings import GenerationSettings, SamplingSettings
from baichuan2_tpu.server.api.schema import SamplingInput
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.server.scheduling.ticket import Request
from baichuan2_tpu.server.service import Service

__all__ = ["answer_settings", "make_requests"]

_SEEDS = 2**64

_Value = TypeVar("_Value")


def answer_settings(
    body: SamplingInput,
    service: Service,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    grammar: Grammar | None = None,
) -> GenerationSettings:
    """Return the model's own settings with what a client asks for in their place.

    Raises: RequestError for a value that is not allowed, or a stream option without a stream.
    """
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options requires stream; set stream to true", param="stream_options")
    model = service.model
    defaults = model.settings
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return replace(
        defaults,
        sampling=_sampling(body, defaults.sampling),
        max_tokens=_first(max_tokens, defaults.max_tokens),
        stop=stop,
        stop_ids=defaults.stop_ids | model.template.stop_ids,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
    )


def make_requests(
    ids: Sequence[int], settings: GenerationSettings, body: SamplingInput, service: Service, client: str
) -> list[Request]:
    """Return a request for each of the ``n`` answers to a prompt, each with its own seed."""
    sampling, client = settings.sampling, body.user or client
    prompt = tuple(ids)  # shared by all answers: it may be megabytes of tokens
    seeds = (None if sampling.seed is None else (sampling.seed + i) % _SEEDS for i in range(body.n or 1))
    return [
        Request(
            prompt,
            replace(settings, sampling=replace(sampling, seed=seed)),
            timeout_s=service.timeout_s,
            client=client,
        )
        for seed in seeds
    ]


def _sampling(body: SamplingInput, defaults: SamplingSettings) -> SamplingSettings:
    return replace(
        defaults,
        temperature=_first(body.temperature, defaults.temperature),
        top_p=_first(body.top_p, defaults.top_p),
        top_k=_first(body.top_k, defaults.top_k),
        min_p=_first(body.min_p, defaults.min_p),
        repetition_penalty=_first(body.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_biases(body.logit_bias or {}),
        # Clients may send a negative seed: its 64 bits are read as unsigned.
        seed=None if body.seed is None else body.seed % _SEEDS,
    )


def _biases(biases: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """Read the token ids, which are text in JSON."""
    wrong = next((name for name in biases if not re.fullmatch("[0-9]{1,9}", name)), None)
    if wrong is not None:
        raise ApiError(f"logit_bias has the key {wrong!r}; only token ids are allowed", param="logit_bias")
    return tuple((int(name), bias) for name, bias in biases.items())


def _first(value: _Value | None, default: _Value) -> _Value:
    return default if value is None else value
