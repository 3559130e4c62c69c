"""The transcripts of the guides are what the program prints: blocks of the language "console", run in order.

Needs the demo weights, as ``test_demo``. A "…" in a transcript stands for anything, lines too.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.resolve import resolve_model
from documents.document_pages import GUIDES, Step, blocks, transcript

TRANSCRIPTS = {
    guide: steps
    for guide in GUIDES
    if (
        steps := [
            step for block in blocks(guide) if block.language == "console" for step in transcript(block)
        ]
    )
}


@pytest.fixture(scope="module", autouse=True)
def demo() -> None:
    try:
        resolve_model("demo", notice=lambda _: None)
    except FetchError as error:
        pytest.skip(f"the demo weights cannot be had: {error}")


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder with a ``baichuan2`` that is the tested one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "baichuan2"
    program.write_text(f"#!{sys.executable}\nfrom baichuan2_tpu.cli import main\n\nmain()\n")
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize("guide", TRANSCRIPTS, ids=lambda guide: guide.stem)
def test_transcript_is_what_the_program_prints(guide: Path, commands: Path) -> None:
    environment = os.environ | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    for step in TRANSCRIPTS[guide]:
        done = subprocess.run(
            ["bash", "-c", step.command],
            cwd=commands.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert re.fullmatch(pattern(step), done.stdout, re.DOTALL), f"$ {step.command}\n{done.stdout}"


def pattern(step: Step) -> str:
    return ".*".join(re.escape(part) for part in "".join(f"{line}\n" for line in step.output).split("…"))
