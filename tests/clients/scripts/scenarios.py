"""What every client is asked to do, and how a script reports it: one line of JSON per scenario.

Run in the client's own environment, so only the standard library is used here. The first argument of a
script is the server's address, the second the model.
"""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Mapping

__all__ = [
    "BASE_URL",
    "CANCEL",
    "CHAT",
    "CHAT_ANSWER",
    "KEY",
    "MODEL",
    "PERSON",
    "RESULT",
    "RESULT_ANSWER",
    "WEATHER",
    "WEATHER_TWICE",
    "cancelled",
    "check",
    "get_weather",
    "report",
    "weather_tool",
]

URL, MODEL = sys.argv[1], sys.argv[2]
BASE_URL = f"{URL}/v1"
KEY = "none-is-needed"

CHAT, CHAT_ANSWER = "Say hello.", "Hello! How can I help?"
WEATHER = "What is the weather in Paris?"
WEATHER_TWICE = "What is the weather in Paris and Rome?"
RESULT, RESULT_ANSWER = "sunny", "It is sunny."
PERSON = "Describe Ada."
"""Answered by the name Ada and the age 36, in the form that is asked for."""
CANCEL = "Count on."
"""Answered by numbers for as long as anybody listens."""

_PATIENCE_S = 20


def get_weather(city: str) -> str:
    """Return the weather of a city."""
    check(city in ("Paris", "Rome"), f"the city is {city!r}")
    return RESULT


def weather_tool(*, strict: bool = False) -> dict[str, object]:
    """Return the function in OpenAI's form."""
    parameters: dict[str, object] = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    function: dict[str, object] = {
        "name": "get_weather",
        "description": "Return the weather of a city.",
        "parameters": parameters,
    }
    return {"type": "function", "function": {**function, "strict": True} if strict else function}


def check(is_right: bool, fault: str) -> None:
    """Raise AssertionError with a fault unless all is right."""
    if not is_right:
        raise AssertionError(fault)


def cancelled() -> int:
    """Return how many answers the server has cancelled."""
    with urllib.request.urlopen(f"{URL}/metrics") as response:
        match = re.search(r'baichuan2_requests_total\{outcome="cancelled"\} (\d+)', response.read().decode())
    return int(match[1]) if match else 0


def check_cancelled(before: int) -> None:
    """Wait until the server has cancelled one answer more."""
    end_s = time.monotonic() + _PATIENCE_S
    while cancelled() <= before:
        check(time.monotonic() < end_s, f"the answer was not cancelled within {_PATIENCE_S} s")
        time.sleep(0.1)


def report(scenarios: Mapping[str, Callable[[], object]]) -> None:
    """Run every scenario and print how it went; "cancel" is checked against the server's own count."""
    for name, scenario in scenarios.items():
        is_cancelled = name.endswith("cancel")
        before = cancelled() if is_cancelled else 0
        fault = None
        try:
            scenario()
            if is_cancelled:
                check_cancelled(before)
        except Exception as error:  # noqa: BLE001 - whatever a client raises is its fault to report
            traceback.print_exc()
            fault = f"{type(error).__name__}: {error}"
        print(json.dumps({"scenario": name, "fault": fault}), flush=True)  # noqa: T201
