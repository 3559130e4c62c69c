"""Use a running server as a LangChain model: an answer, a streamed answer, a chain of prompt and parser.

    pip install langchain-openai
    baichuan2 serve demo
    python examples/langchain_chat.py

Set ``OPENAI_BASE_URL``, ``OPENAI_API_KEY`` and ``MODEL`` for another server, its key and its model.
"""

# ruff: noqa: T201 - an example prints

import os

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

chat = ChatOpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=SecretStr(os.environ.get("OPENAI_API_KEY", "none")),
    model=os.environ.get("MODEL", "demo"),
    temperature=0,
    max_completion_tokens=40,
)

answer = chat.invoke("What is the capital of France?")
print("answer:", answer.text)
print("tokens:", answer.usage_metadata and answer.usage_metadata["total_tokens"])

print("stream: ", end="")
for piece in chat.stream("Count from one to five."):
    print(piece.text, end="", flush=True)
print()

prompt = ChatPromptTemplate.from_messages([("system", "You translate into {language}."), ("user", "{text}")])
chain = prompt | chat | StrOutputParser()
print("chain:", chain.invoke({"language": "French", "text": "Good morning"}))
