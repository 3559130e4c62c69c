"""docs/python.md is the public interface: what the package gives, with the signatures it gives it by."""

import inspect
import re
import subprocess
import sys

import baichuan2_tpu
from documents.document_pages import ROOT

PAGE = ROOT / "docs" / "python.md"


def test_the_page_is_in_step_with_the_code() -> None:
    script = ROOT / "scripts" / "generate_python_reference.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_public_name_and_method_has_its_part() -> None:
    headings = set(re.findall(r"^#{3,4} ([\w.]+)$", PAGE.read_text("utf-8"), re.MULTILINE))
    names = set(baichuan2_tpu.__all__) - {"__version__", "Baichuan2Error"}  # the errors are drawn together
    methods = {
        f"{name}.{method}"
        for name in names
        for method, value in vars(getattr(baichuan2_tpu, name)).items()
        if inspect.isfunction(value) and not method.startswith("_")
    }
    assert names | methods <= headings
    assert {"Model.chat", "Model.stream", "Model.conversation", "Model.generate"} <= methods


def test_the_signatures_are_what_scripts_rely_on() -> None:
    # A change here breaks scripts; a new parameter goes behind the others, by name.
    text = PAGE.read_text("utf-8")
    for line in (
        "chat(messages: Messages, **settings: Unpack[GivenSettings]) -> Result",
        "stream(messages: Messages, **settings: Unpack[GivenSettings]) -> Generator[AnswerPiece, None, None]",
        "conversation(*, system: str | None = None, **settings: Unpack[GivenSettings]) -> Conversation",
        "generate(prompt: str | Sequence[int], **settings: Unpack[GivenSettings]) -> Result",
        "tokens(prompt: Messages) -> list[int]",
    ):
        assert f"\n{line}\n" in text
    parameters = inspect.signature(baichuan2_tpu.load).parameters
    assert list(parameters) == [
        *("model", "engine", "device", "context", "threads", "exact", "kv", "notice", "progress"),
    ]
