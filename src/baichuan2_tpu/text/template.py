"""How each family of models expects a conversation as token ids.

Roles are control ids, put here by id; what people wrote goes through ``Tokenizer.encode``, which yields none.
Not here: keeping a conversation (``chat``). The templates are code, not Jinja out of the checkpoint: a
template from a download could not be trusted, nor could it keep control ids and text apart.
Source: ``build_chat_input`` in Baichuan2's ``generation_utils.py``; ``chat_template`` in the
``tokenizer_config.json`` of SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from baichuan2_tpu.errors import CheckpointError, ContextLengthError
from baichuan2_tpu.files import find_json, read_bytes
from baichuan2_tpu.text.messages import Message, split_rounds
from baichuan2_tpu.text.role_ids import BAICHUAN2_ROLES, find_role_ids
from baichuan2_tpu.text.tokenizer import Tokenizer, fewest_tokens

__all__ = [
    "BaichuanTemplate",
    "ChatMLTemplate",
    "ChatTemplate",
    "RenderedPrompt",
    "find_template",
    "open_template",
]

_CHATML_START = "<|im_start|>"
_CHATML_END = "<|im_end|>"
_CHATML_END_OF_TEXT = "<|endoftext|>"

# The default of SmolLM2's chat_template, for a checkpoint that came without one (a GGUF's tokenizer).
_SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

# A default system message written out in a Jinja template: no quote or brace, so no code.
_DEFAULT_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<>\\]+)<\|im_end\|>")


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """Token ids that ask for an answer, and how many of the oldest rounds are not in them."""

    ids: tuple[int, ...]
    dropped_rounds: int


class ChatTemplate(Protocol):
    """Writes messages as token ids."""

    @property
    @abstractmethod
    def stop_ids(self) -> frozenset[int]:
        """Ids that only the program may write: in the model's output each ends the answer."""

    @abstractmethod
    def render(self, messages: Sequence[Message], budget: int) -> RenderedPrompt:
        """Write the system message and the newest rounds that fit in ``budget`` ids.

        Whole rounds are dropped, the oldest first; the system message and the newest round always stay.
        A last message of the assistant is left open, to be continued.

        Raises: RequestError when the messages make no conversation; ContextLengthError when the system
        message and the newest round do not fit.
        """


class BaichuanTemplate:
    """Baichuan-Chat: a role id before each message, the system message bare in front, no other marks."""

    def __init__(self, tokenizer: Tokenizer, user_id: int, assistant_id: int) -> None:
        self._tokenizer = tokenizer
        self._id_of_role = {"user": user_id, "assistant": assistant_id}

    @property
    def stop_ids(self) -> frozenset[int]:
        """Both role ids."""
        return frozenset(self._id_of_role.values())

    def render(self, messages: Sequence[Message], budget: int) -> RenderedPrompt:
        """Write the newest rounds that fit; a last message of the assistant is left open, to be continued."""
        system, rounds = split_rounds(messages)
        _check_length(fewest_tokens(self._tokenizer, system), budget, "at least ")
        head = self._tokenizer.encode(system)
        is_open = messages[-1].role == "assistant"
        tail = [] if is_open else [self._id_of_role["assistant"]]
        return _fit_rounds(head, rounds, tail, budget, _Encoder(self._tokenizer, self._encode_message))

    def _encode_message(self, message: Message) -> list[int]:
        return [self._id_of_role[message.role], *self._tokenizer.encode(message.content)]


class ChatMLTemplate:
    """SmolLM2-Instruct: each message between marks with its role's name, and a default system message."""

    def __init__(self, tokenizer: Tokenizer, start_id: int, end_id: int, default_system: str) -> None:
        self._tokenizer = tokenizer
        self._start_id = start_id
        self._end_id = end_id
        self._default_system = default_system
        self._newline = tokenizer.encode("\n")

    @property
    def stop_ids(self) -> frozenset[int]:
        """Both marks, and the end of the text where the vocabulary has one."""
        end_of_text = self._tokenizer.control_id(_CHATML_END_OF_TEXT)
        marks = (self._start_id, self._end_id, end_of_text)
        return frozenset(mark for mark in marks if mark is not None)

    def render(self, messages: Sequence[Message], budget: int) -> RenderedPrompt:
        """Write the newest rounds that fit; a last message of the assistant is left open, to be continued."""
        is_open = messages[-1].role == "assistant" if messages else False
        begun = messages[-1].content if is_open else ""
        system, rounds = split_rounds(messages)
        if is_open:
            rounds[-1].pop()
        system = system or self._default_system
        fewest = fewest_tokens(self._tokenizer, system) + fewest_tokens(self._tokenizer, begun)
        _check_length(fewest, budget, "at least ")
        head = self._encode_message(Message("system", system)) if system else []
        tail = self._open_message("assistant", begun)
        return _fit_rounds(head, rounds, tail, budget, _Encoder(self._tokenizer, self._encode_message))

    def _open_message(self, role: str, content: str) -> list[int]:
        return [self._start_id, *self._tokenizer.encode(f"{role}\n{content}")]

    def _encode_message(self, message: Message) -> list[int]:
        return [*self._open_message(message.role, message.content), self._end_id, *self._newline]


def open_template(directory: Path, tokenizer: Tokenizer) -> ChatTemplate:
    """Return the template that the tokenizer's control ids are made for.

    Raises: CheckpointError when it is neither Baichuan's nor ChatML, or as ``find_template`` does.
    """
    template = find_template(directory, tokenizer)
    if template is None:
        raise CheckpointError(
            f"the tokenizer of {directory} knows no chat marks: neither {' and '.join(BAICHUAN2_ROLES)} nor "
            f"{_CHATML_START} and {_CHATML_END}; use a chat model"
        )
    return template


def find_template(directory: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Return the template that the tokenizer's control ids are made for, or None for a base model.

    Raises: CheckpointError for role ids in generation_config.json that are not the tokenizer's, or a template
    that cannot be read.
    """
    roles = find_role_ids(directory, tokenizer)
    if roles is not None:
        return BaichuanTemplate(tokenizer, *roles)
    start, end = tokenizer.control_id(_CHATML_START), tokenizer.control_id(_CHATML_END)
    if start is None or end is None:
        return None
    return ChatMLTemplate(tokenizer, start, end, _default_system(directory))


def _default_system(directory: Path) -> str:
    """Return the system message that a checkpoint's template writes when the user gave none."""
    template = (find_json(directory / "tokenizer_config.json") or {}).get("chat_template")
    # Newer versions of transformers keep the template in a file of its own.
    own_file = directory / "chat_template.jinja"
    if own_file.exists():
        template = read_bytes(own_file).decode("utf-8", "replace")
    if not isinstance(template, str):
        return _SMOLLM2_SYSTEM
    match = _DEFAULT_SYSTEM.search(template)
    return match[1] if match else ""


@dataclass(frozen=True, slots=True)
class _Encoder:
    """How a round becomes ids."""

    tokenizer: Tokenizer
    encode_message: Callable[[Message], list[int]]

    def fewest(self, messages: Sequence[Message]) -> int:
        """Return how many ids the messages have at least, without encoding them."""
        return sum(fewest_tokens(self.tokenizer, message.content) for message in messages)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the messages."""
        return [token_id for message in messages for token_id in self.encode_message(message)]


def _check_length(length: int, budget: int, at_least: str = "") -> None:
    """Check that a prompt of ``length`` ids fits. Raises: ContextLengthError."""
    if length > budget:
        raise ContextLengthError(
            f"the prompt is {at_least}{length} tokens with its system message, {budget} are allowed; shorten "
            "it, leave less room for the answer (max_tokens) or open the model with a larger context"
        )


def _fit_rounds(
    head: list[int],
    rounds: Sequence[Sequence[Message]],
    tail: list[int],
    budget: int,
    encoder: _Encoder,
) -> RenderedPrompt:
    """Put the newest rounds that fit between ``head`` and ``tail``.

    The official code leaves ``tail`` out of the count, always keeps the newest round and then cuts ids off
    the front: the system message, then the user's. Here everything counts and nothing is cut silently.
    """
    ids = list(tail)
    dropped = len(rounds)
    for messages in reversed(rounds):
        is_newest = dropped == len(rounds)
        fewest = len(head) + encoder.fewest(messages) + len(ids)
        if is_newest:
            _check_length(fewest, budget, "at least ")
        if fewest > budget:
            break
        encoded = encoder.encode(messages)
        length = len(head) + len(encoded) + len(ids)
        if is_newest:
            _check_length(length, budget)
        if length > budget:
            break
        ids[:0] = encoded
        dropped -= 1
    return RenderedPrompt((*head, *ids), dropped)
