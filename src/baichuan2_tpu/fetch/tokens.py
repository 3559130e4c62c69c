"""Tokens of the two hubs, from the environment or as a hub's own tool has kept them.

The value of a token is in no message. Not here: the headers a token is sent in (``hub``).
Source: huggingface_hub 2.4.0, ``utils/_auth.py``, ``constants.py``; modelscope 1.x, ``hub/api.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from baichuan2_tpu.errors import FetchError

__all__ = ["HUGGINGFACE", "TRUE_WORDS", "huggingface_token", "modelscope_token"]

HUGGINGFACE = "https://huggingface.co"

TRUE_WORDS = frozenset({"1", "ON", "YES", "TRUE"})
"""What a variable of Hugging Face is set to when it holds, in capitals."""

_FORM = re.compile(r"[!-~]+")
"""Printable ASCII without spaces: what a header can carry, and all that tokens are made of."""


def huggingface_token(environment: Mapping[str, str], endpoint: str) -> str | None:
    """Return the token of the environment; for Hugging Face itself else the one ``hf auth login`` has kept.

    A kept token was given to Hugging Face alone: no mirror gets it. HF_HUB_DISABLE_IMPLICIT_TOKEN forbids it
    wholly; a token in HF_TOKEN is sent wherever HF_ENDPOINT leads.
    Raises: FetchError naming the variable or the file of a token that cannot be sent.
    """
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        token = _checked(environment.get(variable, ""), variable)
        if token:
            return token
    is_forbidden = environment.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in TRUE_WORDS
    if is_forbidden or endpoint.lower() != HUGGINGFACE:
        return None
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or f"{cache}/huggingface"
    path = Path(environment.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
    try:
        return _checked(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError):
        return None


def modelscope_token(environment: Mapping[str, str]) -> str | None:
    """Return the token of the environment.

    Raises: FetchError naming the variable of a token that cannot be sent.
    """
    return _checked(environment.get("MODELSCOPE_API_TOKEN", ""), "MODELSCOPE_API_TOKEN")


def _checked(text: str, where: str) -> str | None:
    """Return a token without the white space around it, None where nothing is left."""
    token = text.strip()
    if not token:
        return None
    if not _FORM.fullmatch(token):
        raise FetchError(
            f"the token of {where} has {len(token)} characters, and one of them is a space or no printable "
            "ASCII, which no token has; copy it again from the page where it was made"
        )
    return token
