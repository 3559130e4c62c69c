"""What all parts of the API share: requests, usage, models, tokens.

A request field of another type or out of range is refused. Unknown fields are kept apart by pydantic, and
``fields`` says which of them are ignored.
Not here: the fields of chats (``schema_chat``) and completions (``schema_completion``).
Source: OpenAI's API reference; ``/tokenize`` and ``/detokenize`` as vLLM has them.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from baichuan2_tpu.server.errors import Output

__all__ = [
    "MAX_ANSWERS",
    "DetokenizeRequest",
    "Detokenized",
    "Input",
    "Limit",
    "Many",
    "ModelCard",
    "ModelList",
    "Names",
    "OpenInput",
    "PromptTokensDetails",
    "SamplingInput",
    "StopInput",
    "StreamOptions",
    "Tokenized",
    "TokenizerInfo",
    "Usage",
    "Whole",
]

_MAX_STOPS = 16  # OpenAI allows 4
_MAX_STOP_IDS = 128
MAX_ANSWERS = 128
"""Per request."""
_INT64 = 2**63
_MAX_NAMES = 1024

_Item = TypeVar("_Item")

Many = Annotated[list[_Item], Field(fail_fast=True)]
"""A list of which only the first error is reported: pydantic takes 20 seconds and 2 GB for a million."""


def _check_few(value: object) -> object:
    """Return an object if it has few names: each could be an error to report."""
    if not isinstance(value, dict):
        return value
    names = cast("dict[object, object]", value)
    if len(names) > _MAX_NAMES:
        raise ValueError(f"the object has {len(names)} names; at most {_MAX_NAMES} are allowed")
    return names


Names = BeforeValidator(_check_few)
"""Limits the number of an object's names where the client chooses them."""


def _read_whole(value: object) -> object:
    """Return a float that is whole as an integer: some languages have no other numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_read_whole)]
"""A whole number, which may be written 16.0."""

Limit = Annotated[Whole, Field(ge=-1, lt=2**31)]
"""A number of tokens; -1 is no limit."""

StopInput = str | Annotated[list[str], Field(max_length=_MAX_STOPS)]
"""One stop string, or several."""


class Input(BaseModel):
    """Part of a request: unknown fields, values of similar types, and NaN are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_names(cls, value: object) -> object:
        return _check_few(value)


class OpenInput(Input):
    """Part of a request whose unknown fields are kept apart, to be ignored by name or refused."""

    model_config = ConfigDict(extra="allow")


class StreamOptions(OpenInput):
    """What a stream contains besides the answer."""

    include_usage: bool = False


class SamplingInput(OpenInput):
    """How tokens are chosen, for chats and completions; null stands for the model's own setting.

    What is not OpenAI's its client sends as ``extra_body``: the names are those of vLLM and llama.cpp.
    """

    model: str | None = Field(None, description="Without it the model that is served answers.")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, ge=-1, lt=_INT64, description="0 and -1 are off.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    repeat_penalty: float | None = Field(
        None, ge=0.01, le=100, description="llama.cpp's name of ``repetition_penalty``."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Names] | None = None
    seed: Whole | None = Field(None, ge=-_INT64, lt=_INT64)
    stop: StopInput | None = None
    stop_token_ids: Annotated[Many[int], Field(max_length=_MAX_STOP_IDS)] | None = None
    min_tokens: Whole | None = Field(None, ge=0, lt=2**31)
    ignore_eos: bool | None = None
    n_predict: Limit | None = Field(None, description="llama.cpp's name of ``max_tokens``.")
    n: Whole | None = Field(None, ge=1, le=MAX_ANSWERS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Requests of one user take turns with those of others.")
    prompt_cache_key: str | None = Field(None, description="Not needed: prefixes are found by their tokens.")


class PromptTokensDetails(Output):
    """How much of a prompt was reused instead of computed."""

    cached_tokens: int


class Usage(Output):
    """Tokens read and written; a prompt counts once, however many answers it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ModelCard(Output):
    """A model that is served; ``max_model_len`` is its context in tokens."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["baichuan2-tpu"] = "baichuan2-tpu"
    max_model_len: int


class ModelList(Output):
    """The list of served models, which has one entry."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Tokenized(Output):
    """The tokens of a text or a chat."""

    tokens: list[int]
    count: int
    max_model_len: int


class TokenizerInfo(Output):
    """What lm-evaluation-harness requests before it uses ``/tokenize``.

    The tokens that begin and end a text have no text form, so their names are null.
    """

    tokenizer_class: str
    vocab_size: int
    bos_token: None = None
    eos_token: None = None
    pad_token: None = None
    chat_template: None = None


class DetokenizeRequest(Input):
    """Tokens to turn into text."""

    model: str | None = None
    tokens: Many[int]


class Detokenized(Output):
    """The text of tokens; invalid UTF-8 becomes U+FFFD, control tokens are left out."""

    prompt: str
