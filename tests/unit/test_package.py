"""The public names come from the package's root, each imported when it is first used."""

import subprocess
import sys

import pytest

import baichuan2_tpu
from baichuan2_tpu.chat import Conversation
from baichuan2_tpu.compile.driver import compile_bundle
from baichuan2_tpu.generate.settings import GenerationSettings
from baichuan2_tpu.model import Model, load
from baichuan2_tpu.quantize import quantize

UNWANTED = {"httpx", "typer", "rich", "pydantic", "gradio", "gguf", "sentencepiece", "prompt_toolkit"}


def test_public_names_are_those_of_the_parts() -> None:
    assert baichuan2_tpu.load is load
    assert baichuan2_tpu.Model is Model
    assert baichuan2_tpu.Conversation is Conversation
    assert baichuan2_tpu.GenerationSettings is GenerationSettings
    assert baichuan2_tpu.quantize_checkpoint is quantize
    assert baichuan2_tpu.compile_bundle is compile_bundle


@pytest.mark.parametrize("name", baichuan2_tpu.__all__)
def test_every_public_name_exists_and_is_listed(name: str) -> None:
    assert getattr(baichuan2_tpu, name) is not None
    assert name in dir(baichuan2_tpu)


def test_another_name_is_missing_as_in_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'baichuan2_tpu' has no attribute 'lod'"):
        baichuan2_tpu.lod  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_load_is_imported_without_what_only_a_fetch_or_the_command_line_needs() -> None:
    code = (
        "import sys; from baichuan2_tpu import load; assert callable(load); "
        f"print(*({UNWANTED!r} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_package_runs_as_a_module() -> None:
    words = [sys.executable, "-m", "baichuan2_tpu"]
    done = subprocess.run([*words, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"baichuan2-tpu {baichuan2_tpu.__version__}\n")
    wrong = subprocess.run([*words, "train"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: No such command 'train'; see baichuan2 --help\n"
