"""What chats and completions share when they become requests: settings, seeds, clients.

Not here: their prompts (``chat_input``, ``completion``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from baichuan2_tpu.generate.grammar.constraint import Grammar
from baichuan2_tpu.generate.settings import GenerationSettings
from baichuan2_tpu.server.api.schema import SamplingInput
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.server.scheduling.ticket import Request
from baichuan2_tpu.server.service import Service
from baichuan2_tpu.server.tenants import current_tenant

__all__ = ["NO_LIMIT", "answer_settings", "make_requests"]

_SEEDS = 2**64
NO_LIMIT = -1
"""The limit of llama.cpp's and LM Studio's clients for as many tokens as fit."""


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
    penalty = body.repeat_penalty if body.repetition_penalty is None else body.repetition_penalty
    return defaults.override(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(0, body.top_k),  # vLLM writes -1 for "off"
        min_p=body.min_p,
        repetition_penalty=penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=_biases(body.logit_bias or {}, model.tokenizer.vocabulary_size),
        # Clients may send a negative seed: the same 64 bits are another number.
        seed=None if body.seed is None else body.seed % _SEEDS,
        max_tokens=model.max_context if max_tokens == NO_LIMIT else max_tokens,
        min_tokens=body.min_tokens,
        ignore_eos=body.ignore_eos,
        own_stop_ids=frozenset(body.stop_token_ids or ()),
        stop=body.stop,
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
            tenant=current_tenant.get(),
        )
        for seed in seeds
    ]


def _biases(biases: Mapping[str, float], vocabulary_size: int) -> dict[int, float]:
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
    return {int(name): bias for name, bias in biases.items()}
