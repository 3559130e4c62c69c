"""Write the tables of parameters in docs/clients.md and docs/clients.zh.md from the code.

With --check, fail when a page is not in step. Not here: what the tables are about, which the pages say.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from baichuan2_tpu.server.api.fields import IGNORED, REFUSED, REFUSED_OF_RESPONSES
from baichuan2_tpu.server.api.responses.schema import ResponseRequest
from baichuan2_tpu.server.api.schema_chat import ChatRequest
from baichuan2_tpu.server.api.schema_completion import CompletionRequest

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- parameters: written by scripts/generate_parameter_table.py -->", "<!-- parameters end -->"
ENGLISH = (
    "Honoured",
    "Chats",
    "Completions",
    "Responses",
    "yes",
    "Ignored",
    "Refused",
    "Refused of responses",
)
CHINESE = ("支持", "对话", "续写", "Responses", "是", "忽略", "拒绝", "Responses 拒绝")
MODELS = (ChatRequest, CompletionRequest, ResponseRequest)


def honoured(words: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of the fields that are declared."""
    yield f"| {' | '.join(words[:4])} | |"
    yield "|---|---|---|---|---|"
    for name in dict.fromkeys(name for model in MODELS for name in model.model_fields):
        fields = [model.model_fields.get(name) for model in MODELS]
        marks = ("" if field is None else words[4] for field in fields)
        first = next(field for field in fields if field is not None)
        note = (first.description or "").replace("``", "`") if words is ENGLISH else ""
        yield f"| `{name}` | {' | '.join(marks)} | {note} |"


def reasons(heading: str, table: dict[str, str], words: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of the fields that are not honoured, with the reasons in English."""
    if words is CHINESE:
        yield f"{heading}：" + "、".join(f"`{name}`" for name in table) + "。"
        return
    yield f"| {heading} | |"
    yield "|---|---|"
    yield from (f"| `{name}` | {reason} |" for name, reason in table.items())


def render(words: tuple[str, ...]) -> str:
    """Return the tables of one language."""
    own = {name: reason for name, reason in REFUSED_OF_RESPONSES.items() if REFUSED.get(name) != reason}
    parts = [
        honoured(words),
        reasons(words[5], dict(IGNORED), words),
        reasons(words[6], dict(REFUSED), words),
        reasons(words[7], own, words),
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    is_check = parser.parse_args().check
    for name, words in (("clients.md", ENGLISH), ("clients.zh.md", CHINESE)):
        page = DOCS / name
        text = page.read_text("utf-8")
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        new = f"{before}{BEGIN}\n\n{render(words)}\n\n{END}{after}"
        if is_check and new != text:
            print(f"error: {page} is not in step with the code; run scripts/generate_parameter_table.py")
            return 1
        page.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
