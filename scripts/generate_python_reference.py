"""Write docs/python.md from the docstrings of the public names; with --check, fail when it is not in step.

Not here: the names themselves (``baichuan2_tpu.__all__``).
"""

import argparse
import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import baichuan2_tpu
from baichuan2_tpu import errors, model
from baichuan2_tpu.checkpoint import identify
from baichuan2_tpu.generate import events, loop
from baichuan2_tpu.generate.events import Stats, TokenChosen
from baichuan2_tpu.generate.sampling import TokenLogprob
from baichuan2_tpu.generate.settings import GivenSettings, SamplingSettings
from baichuan2_tpu.text.messages import Message

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"
WIDTH = 100
HEAD = """# Python

<!-- Written by scripts/generate_python_reference.py; change the code, then run it again. -->

```python
from baichuan2_tpu import load

with load("demo", notice=print) as model:
    print(model.chat("What is the capital of France? Answer in one sentence.").text)
    for piece in model.stream("Count to five.", temperature=0):
        print(piece.text, end="", flush=True)
```

A model is a known name, a checkpoint, a bundle or a .gguf file, as on the command line, and memory is checked
in the same way. `import baichuan2_tpu` imports nothing else; each name below is imported on first use. All
have types: a checker such as pyright finds a misspelt setting before the script runs.

```python
from baichuan2_tpu import load

with load("demo") as model, model.conversation(system="Answer in one word.", temperature=0) as conversation:
    print(conversation.chat("What is the capital of France?").text)
    answer = conversation.chat("And of Italy?")
    print(answer.text, answer.stats.reused_tokens, "tokens of the prompt were computed before")
```

An answer that must be JSON, by a schema:

```python
from baichuan2_tpu import load
from baichuan2_tpu.generate.grammar.grammars import Grammars

schema = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
with load("demo") as model:
    grammar = Grammars(model.tokenizer).json_schema(schema)
    print(model.chat("What is the capital of France?", temperature=0, grammar=grammar).text)
```

To quantise and compile in a script:

```python
from baichuan2_tpu import compile_bundle, quantize_checkpoint
from baichuan2_tpu.compile.driver import BuildSettings
from baichuan2_tpu.compile.settings import CompileSettings, default_stages
from baichuan2_tpu.toolchain import find_toolchain

quantize_checkpoint("Baichuan2-7B-Chat", "baichuan2-7b-w4", bits=4)
stages = default_stages(context=512, rows=512)
settings = CompileSettings(bits=4, head="w8", context=512, rows=512, stages=stages, layers_per_net=4)
compile_bundle("baichuan2-7b-w4", "baichuan2-7b-512", settings, BuildSettings(find_toolchain()))
```

## If you know another library
"""
COMPARISON = (
    ("To", "mlx-lm", "llama-cpp-python", "vLLM", "here"),
    ("---",) * 5,
    ("open a model", "`load(…)`", "`Llama(model_path=…)`", "`LLM(model=…)`", "`load(…)`"),
    ("set the context", "`max_kv_size=…` of a call", "`n_ctx=…`", "`max_model_len=…`", "`context=…`"),
    (
        "answer messages",
        "`apply_chat_template`, `generate`",
        "`create_chat_completion(…)`",
        "`llm.chat(…)`",
        "`model.chat(…)`",
    ),
    ("the same, as a stream", "`stream_generate(…)`", "`stream=True`", "", "`model.stream(…)`"),
    ("continue a text", "`generate(…)`", "`llm(…)`", "`llm.generate(…)`", "`model.generate(…)`"),
    ("the same, as a stream", "`stream_generate(…)`", "`stream=True`", "", "`model.stream_generate(…)`"),
    (
        "get the text",
        "the value; `.text` of a piece",
        '`["choices"][0]["message"]["content"]`',
        "`[0].outputs[0].text`",
        "`.text`",
    ),
    (
        "set the temperature",
        "`sampler=make_sampler(temp=…)`",
        "`temperature=…`",
        "`SamplingParams(temperature=…)`",
        "`temperature=…`",
    ),
    ("answer with JSON by a schema", "", "`response_format=…`", "`structured_outputs=…`", "`grammar=…`"),
    (
        "reuse a computed prefix",
        "`prompt_cache=…`",
        "automatic, of the last prompt",
        "automatic prefix caching",
        "`model.conversation(…)`",
    ),
    (
        "count tokens",
        "`tokenizer.encode(…)`",
        "`llm.tokenize(…)`",
        "`llm.get_tokenizer()`",
        "`model.tokens(…)`",
    ),
    ("free the memory", "", "`llm.close()`", "", "`with`, or `model.close()`"),
    ("answer many at once", "`batch_generate(…)`", "", "a list of prompts", "[`baichuan2 serve`](serve.md)"),
)
MORE = (Message, Stats, TokenChosen, TokenLogprob, SamplingSettings)
"""Classes that the public names lead to."""
TYPES = (
    (model, "Messages"),
    (model, "Notice"),
    (model, "LoadProgress"),
    (loop, "ReadProgress"),
    (identify, "ModelKind"),
    (events, "FinishReason"),
)


def render() -> str:
    """Return the whole page."""
    names = [name for name in baichuan2_tpu.__all__ if name != "__version__"]
    functions = [name for name in names if inspect.isfunction(getattr(baichuan2_tpu, name))]
    table = "\n".join(f"| {' | '.join(row)} |" for row in COMPARISON)
    parts = [HEAD, f"{table}\n", "## Functions\n"]
    parts += [describe_function(f"### {name}", name, getattr(baichuan2_tpu, name)) for name in functions]
    parts.append("## Classes\n")
    for name in names:
        value = getattr(baichuan2_tpu, name)
        if inspect.isclass(value) and not issubclass(value, BaseException):
            parts += describe_class(name, value)
    parts += [settings_table(), "## What these lead to\n"]
    for kind in MORE:
        parts += describe_class(kind.__name__, kind)
    parts += [type_names(), "## Errors\n", error_tree()]
    return "\n".join(parts)


def describe_function(heading: str, name: str, function: Callable[..., Any]) -> str:
    """Return a function's heading, signature and docstring."""
    return f"{heading}\n\n```python\n{signature(name, function)}\n```\n\n{prose(function)}\n"


def describe_class(name: str, kind: type) -> Iterator[str]:
    """Yield a class's heading, fields and docstring, its properties, and a part for each method."""
    yield f"### {name}\n"
    if dataclasses.is_dataclass(kind):
        yield "```python\n" + "\n".join(fields(kind)) + "\n```\n"
    yield prose(kind) + "\n"
    members = {key: value for key, value in vars(kind).items() if not key.startswith("_")}
    properties = {key: value for key, value in members.items() if isinstance(value, property)}
    if properties:
        yield "\n".join(f"- `{key}`: {inline(value)}" for key, value in properties.items()) + "\n"
    for key, value in members.items():
        if inspect.isfunction(value):
            yield describe_function(f"#### {name}.{key}", key, value)


def signature(name: str, function: Callable[..., Any]) -> str:
    """Write a signature as the code does, on one line or with a line for each parameter."""
    call = inspect.signature(function)
    words = [str(word) for word in parameters(call) if word != "self"]
    end = f" -> {annotation(call.return_annotation)}"
    line = f"{name}({', '.join(words)}){end}"
    return (
        line if len(line) <= WIDTH else f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){end}"
    )


def parameters(call: inspect.Signature) -> Iterator[str]:
    """Yield every parameter with its type and default, and the star before those that go by name."""
    is_starred = False
    for parameter in call.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not is_starred:
            is_starred = True
            yield "*"
        word = {parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "") + parameter.name
        if parameter.annotation is not parameter.empty:
            word += f": {annotation(parameter.annotation)}"
        yield word + default(parameter.default, parameter.empty)


def default(value: object, empty: object) -> str:
    """Write a default; a function's has no form that a reader would know."""
    if value is empty:
        return ""
    return " = …" if callable(value) else f" = {value!r}"


def annotation(value: object) -> str:
    """Write a type as the code does."""
    if isinstance(value, typing.ForwardRef):
        return value.__forward_arg__
    return value if isinstance(value, str) else getattr(value, "__name__", str(value))


def fields(kind: type) -> Iterator[str]:
    """Yield the fields of a dataclass."""
    for field in dataclasses.fields(kind):
        word = f"{field.name}: {annotation(field.type)}"
        made = " = …" if field.default_factory is not dataclasses.MISSING else ""
        yield word + (made or default(field.default, dataclasses.MISSING))


def prose(value: object) -> str:
    """Return a docstring in Markdown, each of its labelled lines in bold."""
    text = re.sub(r"``([^`]+)``", r"`\1`", inspect.getdoc(value) or "")
    text = re.sub(r"(?<!\n)\n(Side effect|Raises|Units|Shapes|Source):", r"\n\n\1:", text)
    return re.sub(r"^(Side effect|Raises|Units|Shapes|Source):", r"**\1:**", text, flags=re.MULTILINE)


def inline(value: object) -> str:
    """Return a docstring on one line."""
    return " ".join(prose(value).split())


def settings_table() -> str:
    """Return the keywords that every call takes."""
    rows = [f"| `{name}` | `{annotation(kind)}` |" for name, kind in GivenSettings.__annotations__.items()]
    rows = [row.replace(" | None`", "`").replace(" | I", r" \| I") for row in rows]
    text = "\n".join(["| keyword | type |", "|---|---|", *rows])
    return f"### Settings of a call\n\n{prose(GivenSettings)}\n\n{text}\n"


def type_names() -> str:
    """Return the definitions of the types that have a name."""
    lines = [definition(inspect.getsource(module), name) for module, name in TYPES]
    return "### Types\n\n```python\n" + "\n".join(lines) + "\n```\n"


def definition(source: str, name: str) -> str:
    """Return the line that defines a name."""
    match = re.search(rf"^{name} = .*$", source, re.MULTILINE)
    assert match is not None, f"{name} is not defined on a line of its own"
    return match.group()


def error_tree() -> str:
    """Return the drawing of all errors."""
    text, _, drawing = (errors.__doc__ or "").partition("::\n")
    sentence = text.split("\n\n")[1]
    return f"`baichuan2_tpu.errors` has them all. {sentence}\n\n```text\n{inspect.cleandoc(drawing)}\n```\n"


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    page = render()
    if not parser.parse_args().check:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    message = "docs/python.md is not in step with the code; run scripts/generate_python_reference.py"
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
