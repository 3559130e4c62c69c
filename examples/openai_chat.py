"""Ask a running server with OpenAI's own package: an answer, a streamed answer, JSON, and an error.

    pip install openai
    baichuan2 serve demo
    python examples/openai_chat.py

Set ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY`` for another server and its key.
"""

# ruff: noqa: T201 - an example prints

import json
import os

import openai

client = openai.OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    # The package requires a key; the server checks it only if it was started with keys.
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id
print("model:", model)

answer = client.chat.completions.create(
    model=model,
    messages=[
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": "What is the capital of France?"},
    ],
    max_tokens=40,
    temperature=0,
)
print("answer:", answer.choices[0].message.content)
if answer.usage:
    print("tokens:", answer.usage.prompt_tokens, "+", answer.usage.completion_tokens)

print("stream: ", end="")
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Count from one to five."}],
    max_tokens=40,
    seed=7,  # the same seed gives the same answer
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

city = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Name a city and its country, as JSON."}],
    max_tokens=200,
    temperature=0,
    response_format={
        "type": "json_schema",
        "json_schema": {
            "name": "city",
            "schema": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 20},
                    "country": {"type": "string", "maxLength": 20},
                },
                "required": ["city", "country"],
                "additionalProperties": False,
            },
        },
    },
)
print("json:", json.loads(city.choices[0].message.content or ""))

try:
    client.chat.completions.create(model="another", messages=[{"role": "user", "content": "Hello"}])
except openai.NotFoundError as error:
    print("error:", error.status_code, error.code)
