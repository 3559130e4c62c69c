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

__all__ = ["NO_LIMIT", "answer_settings", "make_requests"]

_SEEDS = 2**64
NO_LIMIT = -1
"""The limit of llama.cpp's and LM Studio's clients for as many tokens as fit."""

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

    Raises: RequestError for a value that is not allowed.
    """
    model = service.model
    defaults = model.settings
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    limit = model.max_context if max_tokens == NO_LIMIT else _first(max_tokens, defaults.max_tokens)
    return replace(
        defaults,
        sampling=_sampling(body, service),
        max_tokens=limit,
        min_tokens=body.min_tokens or 0,
        ignore_eos=body.ignore_eos or False,
        own_stop_ids=frozenset(body.stop_token_ids or ()),
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


def _sampling(body: SamplingInput, service: Service) -> SamplingSettings:
    defaults = service.model.settings.sampling
    penalty = _first(body.repetition_penalty, body.repeat_penalty)
    return replace(
        defaults,
        temperature=_first(body.temperature, defaults.temperature),
        top_p=_first(body.top_p, defaults.top_p),
        top_k=max(0, _first(body.top_k, defaults.top_k)),  # vLLM writes -1 for "off"
        min_p=_first(body.min_p, defaults.min_p),
        repetition_penalty=_first(penalty, defaults.repetition_penalty),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_biases(body.logit_bias or {}, service.model.tokenizer.vocabulary_size),
        # Clients may send a negative seed: its 64 bits are read as unsigned.
        seed=None if body.seed is None else body.seed % _SEEDS,
    )


def _biases(biases: Mapping[str, float], vocabulary_size: int) -> tuple[tuple[int, float], ...]:
    """Read the token ids, which are text in JSON."""
    wrong = next((name for name in biases if not re.fullmatch("[0-9]{1,9}", name)), None)
    if wrong is not None:
        raise ApiError(f"logit_bias has the key {wrong!r}; only token ids are allowed", param="logit_bias")
    unknown = next((name for name in biases if int(name) >= vocabulary_size), None)
    if unknown is not None:
        raise ApiError(
            f"logit_bias names token {unknown}; 0 to {vocabulary_size - 1} are in the vocabulary",
            param="logit_bias",
        )
    return tuple((int(name), bias) for name, bias in biases.items())


def _first(value: _Value | None, default: _Value) -> _Value:
    return default if value is None else value
