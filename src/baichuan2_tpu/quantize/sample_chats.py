"""Short conversations in English, Chinese and code, which show what inputs a chat model's linears get in use.

A chat model gets them in its template, so that its role marks are among the inputs; a base model gets their
text.
Not here: what is done with them (``calibration_text``).
Source: ``sample_chats.txt``, written for this package.
"""

from __future__ import annotations

import re
from importlib.resources import files

from baichuan2_tpu.text.messages import Message
from baichuan2_tpu.text.template import ChatTemplate
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["encode_sample_chats"]

_CHAT = re.compile(r"<<user>>\n(.+?)\n<<assistant>>\n(.+?)\n(?=<<user>>|\Z)", re.DOTALL)
_BUDGET = 1 << 16  # far above the longest conversation


def encode_sample_chats(tokenizer: Tokenizer, template: ChatTemplate | None) -> list[int]:
    """Return the ids of all conversations, one after another."""
    text = files("baichuan2_tpu.quantize").joinpath("sample_chats.txt").read_text("utf-8")
    chats = _CHAT.findall(text)
    return [token for question, answer in chats for token in _encode(tokenizer, template, question, answer)]


def _encode(tokenizer: Tokenizer, template: ChatTemplate | None, question: str, answer: str) -> list[int]:
    if template is None:
        return tokenizer.encode(f"{question}\n\n{answer}\n\n")
    messages = [Message("user", question), Message("assistant", answer)]
    return list(template.render(messages, _BUDGET).ids)
