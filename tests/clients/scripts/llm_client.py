"""Simon Willison's llm, as a library, with the server as one more of OpenAI's models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from llm.default_plugins.openai_models import Chat
from pydantic import BaseModel
from scenarios import (
    BASE_URL,
    CANCEL,
    CHAT,
    CHAT_ANSWER,
    KEY,
    MODEL,
    PERSON,
    RESULT_ANSWER,
    WEATHER_TWICE,
    check,
    get_weather,
    report,
)

model = Chat(MODEL, model_name=MODEL, api_base=BASE_URL, supports_schema=True, supports_tools=True)
model.key = KEY


class Person(BaseModel):
    name: str
    age: int


def chat() -> None:
    conversation = model.conversation()
    for _turn in range(2):
        answer = conversation.prompt(CHAT, stream=False).text()
        check(answer == CHAT_ANSWER, repr(answer))


def stream() -> None:
    text = "".join(model.prompt(CHAT, system="Be brief."))
    check(text == CHAT_ANSWER, repr(text))


def run_tools(*, stream: bool) -> None:
    *_, last = model.chain(WEATHER_TWICE, tools=[get_weather], stream=stream).responses()
    check(last.text() == RESULT_ANSWER, repr(last.text()))


def json_schema() -> None:
    person = json.loads(model.prompt(PERSON, schema=Person).text())
    check(person == {"name": "Ada", "age": 36}, str(person))


def cancel() -> None:
    """Press Ctrl-C: the library itself never closes a connection early."""
    with tempfile.TemporaryDirectory() as folder:
        more = [{"model_id": "ours", "model_name": MODEL, "api_base": BASE_URL, "api_key_name": "ours"}]
        Path(folder, "extra-openai-models.yaml").write_text(json.dumps(more))
        command = [sys.executable, "-m", "llm", "-m", "ours", "--key", KEY, "--no-log", CANCEL]
        with subprocess.Popen(
            command,
            env=os.environ | {"LLM_USER_PATH": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as process:
            process.stdout.read(3)
            process.send_signal(signal.SIGINT)


report(
    {
        "chat": chat,
        "stream": stream,
        "tools": lambda: run_tools(stream=False),
        "stream-tools": lambda: run_tools(stream=True),
        "json-schema": json_schema,
        "cancel": cancel,
    }
)
