"""The ids that Baichuan's chat models put in front of what a user and what the assistant says.

A checkpoint has them in its ``generation_config.json``; where that says nothing they are found by their names
in the official vocabularies. Not here: the order of messages (``template``).
Source: ``build_chat_input`` of Baichuan-13B-Chat and of Baichuan2-Chat; the ids are 195 and 196 in both.
"""

from __future__ import annotations

from pathlib import Path

from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import find_json
from baichuan2_tpu.quoting import quote
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["BAICHUAN2_ROLES", "find_role_ids"]

_FILE = "generation_config.json"
_KEYS = ("user_token_id", "assistant_token_id")

BAICHUAN2_ROLES = ("<reserved_106>", "<reserved_107>")
_BAICHUAN1_ROLES = ("<reserved_102>", "<reserved_103>")  # the same ids: version 1 reserves four names less
_BAICHUAN1_VOCABULARY = 64_000


def find_role_ids(directory: Path, tokenizer: Tokenizer) -> tuple[int, int] | None:
    """Return the ids of the user and of the assistant, or None where there are none.

    Raises: CheckpointError for ids in generation_config.json that the tokenizer cannot use as roles.
    """
    path = directory / _FILE
    values = find_json(path) or {}
    given = {key: values[key] for key in _KEYS if values.get(key) is not None}
    if given:
        user, assistant = (_check_id(path, tokenizer, key, given.get(key)) for key in _KEYS)
        if user == assistant:
            raise CheckpointError(f"{path}: {' and '.join(_KEYS)} are both {user}; {_NEXT_STEP}")
        return user, assistant
    is_version_1 = tokenizer.vocabulary_size == _BAICHUAN1_VOCABULARY
    names = _BAICHUAN1_ROLES if is_version_1 else BAICHUAN2_ROLES
    user, assistant = map(tokenizer.control_id, names)
    return None if user is None or assistant is None else (user, assistant)


_NEXT_STEP = "copy the file again from the original model"


def _check_id(path: Path, tokenizer: Tokenizer, key: str, value: object) -> int:
    """Check that an id is a control id of the tokenizer: a user could type any other one."""
    last = tokenizer.vocabulary_size - 1
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= last:
        seen = "missing" if value is None else quote(value)
        raise CheckpointError(
            f"{path}: {key} is {seen}, allowed is a token id from 0 to {last}; {_NEXT_STEP}"
        )
    text = tokenizer.token_bytes(value)
    if text:
        raise CheckpointError(
            f"{path}: {key} is {value}, which is the text {quote(text.decode('utf-8', 'replace'))} in the "
            f"tokenizer's vocabulary, allowed is a reserved id; {_NEXT_STEP}"
        )
    return value
