"""Instructor, which asks for objects: by a forced tool, by a JSON schema, and whole or in parts."""

from __future__ import annotations

from typing import Any

import instructor
from openai import OpenAI
from pydantic import BaseModel
from scenarios import BASE_URL, CANCEL, CHAT, CHAT_ANSWER, KEY, MODEL, PERSON, check, report


class Person(BaseModel):
    name: str
    age: int


def check_ada(person: Any) -> None:
    """Check an object, whose class is Instructor's own."""
    check((person.name, person.age) == ("Ada", 36), repr(person))


def new_client(mode: instructor.Mode) -> Any:
    return instructor.from_openai(OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0), mode=mode)


def create(mode: instructor.Mode, text: str, kind: Any = Person) -> Any:
    client = new_client(mode)
    return client.create(
        model=MODEL, messages=[{"role": "user", "content": text}], response_model=kind, max_retries=0
    )


def chat() -> None:
    answer = create(instructor.Mode.TOOLS, CHAT, None).choices[0].message.content
    check(answer == CHAT_ANSWER, repr(answer))


def tools() -> None:
    check_ada(create(instructor.Mode.TOOLS, PERSON))


def stream_tools() -> None:
    client = new_client(instructor.Mode.TOOLS)
    messages = [{"role": "user", "content": PERSON}]
    *_, person = client.create_partial(model=MODEL, messages=messages, response_model=Person)
    check_ada(person)


def json_schema() -> None:
    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON):
        check_ada(create(mode, PERSON))


def cancel() -> None:
    chunks = new_client(instructor.Mode.TOOLS).create(
        model=MODEL, messages=[{"role": "user", "content": CANCEL}], response_model=None, stream=True
    )
    for _number in range(3):
        next(chunks)
    chunks.close()


report(
    {"chat": chat, "tools": tools, "stream-tools": stream_tools, "json-schema": json_schema, "cancel": cancel}
)
