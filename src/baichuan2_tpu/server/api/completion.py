"""From a completion as OpenAI writes it to requests of the scheduler.

Not here: the fields (``schema_completion``), the answer (``completion_answers``).
"""

from __future__ import annotations

from typing import cast

from baichuan2_tpu.server.api.answer_settings import answer_settings, repeated
from baichuan2_tpu.server.api.schema import MAX_ANSWERS
from baichuan2_tpu.server.api.schema_completion import CompletionRequest
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.server.scheduling.scheduler import Request
from baichuan2_tpu.server.service import Service

__all__ = ["completion_requests"]


def completion_requests(body: CompletionRequest, service: Service, client: str) -> list[Request]:
    """Return a request for each answer to each prompt, the answers to the first prompt first.

    Raises: ApiError, RequestError for what cannot be honoured.
    """
    if body.best_of not in (None, body.n or 1):
        raise ApiError(
            f"best_of is {body.best_of}; {body.n or 1}, the value of n, is allowed", param="best_of"
        )
    settings = answer_settings(
        body,
        service,
        max_tokens=body.max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=_prompt_logprobs(body),
    )
    prompts = _prompts(body)
    if len(prompts) * (body.n or 1) > MAX_ANSWERS:
        raise ApiError(
            f"{len(prompts)} prompts with {body.n} answers each are asked for; "
            f"{MAX_ANSWERS} answers are allowed in all",
            param="n",
        )
    return [
        request
        for prompt in prompts
        for request in repeated(_ids(prompt, service), settings, body, service, client)
    ]


def _prompt_logprobs(body: CompletionRequest) -> int | None:
    """Return how many likely tokens are told of each place of the prompt; None when it is not scored."""
    if not body.echo:
        return None
    # An answer of no tokens is a prompt that is scored, whether or not the scores are wanted.
    return 0 if body.logprobs is None and body.max_tokens == 0 else body.logprobs


def _prompts(body: CompletionRequest) -> list[str] | list[list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [cast("list[int]", prompt)]
    return cast("list[str] | list[list[int]]", prompt)


def _ids(prompt: str | list[int], service: Service) -> list[int]:
    return service.model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
