"""Tokens as a client reads them beside their log probabilities.

Not here: the log probabilities themselves (``generate.sampling``).
"""

from __future__ import annotations

from collections.abc import Sequence

from baichuan2_tpu.generate.events import TokenChosen
from baichuan2_tpu.server.api.schema_chat import ChatLogprobs, TokenLogprob, TokenLogprobs
from baichuan2_tpu.server.api.schema_completion import CompletionLogprobs
from baichuan2_tpu.text.stream import StreamDecoder
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["CompletionLogprobsWriter", "chat_logprobs"]

_LEAST = -9999.0  # OpenAI's value for "as good as never"; JSON has no infinity


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenChosen]) -> ChatLogprobs | None:
    """Write the tokens of a chat's answer; None when no log probabilities were asked for."""
    asked = [token for token in tokens if token.logprob is not None]
    if not asked:
        return None
    return ChatLogprobs(content=[_chat_token(tokenizer, token) for token in asked])


def _chat_token(tokenizer: Tokenizer, token: TokenChosen) -> TokenLogprobs:
    top = [_entry(tokenizer, one.token_id, one.logprob) for one in token.top_logprobs]
    own = _entry(tokenizer, token.token_id, token.logprob or 0.0)
    return TokenLogprobs(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> TokenLogprob:
    content = tokenizer.token_bytes(token_id)
    return TokenLogprob(
        token=content.decode("utf-8", "replace"), logprob=max(logprob, _LEAST), bytes=list(content)
    )


class CompletionLogprobsWriter:
    """Writes the tokens of one completion, and counts its characters on the way."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer)
        self._offset = 0

    def write(self, tokens: Sequence[TokenChosen]) -> CompletionLogprobs:
        """Write the next tokens."""
        return CompletionLogprobs(
            tokens=[self._name(token.token_id) for token in tokens],
            token_logprobs=[
                None if token.logprob is None else max(token.logprob, _LEAST) for token in tokens
            ],
            top_logprobs=[self._top(token) for token in tokens],
            text_offset=[self._place(token.token_id) for token in tokens],
        )

    def _top(self, token: TokenChosen) -> dict[str, float] | None:
        """Return the likeliest tokens, and the chosen one, by their names."""
        if token.logprob is None:
            return None
        top = {self._name(one.token_id): max(one.logprob, _LEAST) for one in token.top_logprobs}
        return top | {self._name(token.token_id): max(token.logprob, _LEAST)}

    def _place(self, token_id: int) -> int:
        place = self._offset
        self._offset += len(self._decoder.push(token_id))
        return place

    def _name(self, token_id: int) -> str:
        content = self._tokenizer.token_bytes(token_id)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
