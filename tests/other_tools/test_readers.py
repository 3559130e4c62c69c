"""Checkpoints that are written here give the same words in other tools, unedited.

Needs transformers, GPTQModel and torch, which BAICHUAN2_TEST_PEERS=1 installs from PyPI.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from baichuan2_tpu import load
from baichuan2_tpu.engine.base import Chunk, Engine
from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.quantize import quantize
from baichuan2_tpu.resolve import find_source
from models.tiny_checkpoint import rope_config, write_official
from models.tiny_tokenizer import write_sentencepiece
from other_tools.environments import GPTQ_READERS, PeerMissingError, ask, install

pytestmark = pytest.mark.skipif(
    os.environ.get("BAICHUAN2_TEST_PEERS") != "1",
    reason="set BAICHUAN2_TEST_PEERS=1; it installs torch, transformers and GPTQModel (1 GB, in the cache)",
)

TEXTS = (
    "The capital of France is Paris.",
    "请使用C++写一段冒泡排序算法。",
    " a  b\n\tc12... <td>x</td>",
    "你好😀\u0130e\u0301 ",
)
BEGINNINGS = ("The capital of France is", "Once upon a time there was a dog that")
COUNT = 16


class Answer(NamedTuple):
    """A greedy answer, and by how much the logit of every word leads the second best."""

    ids: list[int]
    leads: list[float]


class Word(NamedTuple):
    """A word that another tool would not say as we do."""

    place: int
    ours: int
    theirs: int
    lead: float


@dataclass(frozen=True)
class Made:
    """A checkpoint that was written here, and what our own engine and tokenizer make of it."""

    folder: Path
    prompts: list[list[int]]
    answers: list[Answer]
    texts: list[list[int]]

    def question(self) -> dict[str, Any]:
        """Ask another tool for the token that it would choose at every place of our answers."""
        whole = [prompt + answer.ids for prompt, answer in zip(self.prompts, self.answers, strict=True)]
        return {"folder": str(self.folder), "prompts": whole, "texts": TEXTS}

    def other_words(self, best: list[list[int]]) -> list[Word]:
        """Return where the tool would say something else: nowhere means the same greedy answer."""
        return [
            Word(place, ours, theirs, lead)
            for prompt, answer, ids in zip(self.prompts, self.answers, best, strict=True)
            for place, (ours, theirs, lead) in enumerate(
                zip(answer.ids, ids[len(prompt) - 1 : -1], answer.leads, strict=True)
            )
            if ours != theirs
        ]


def demo_source(_: Path) -> Path:
    try:
        return find_source("demo", lambda _: None).path
    except FetchError as error:
        pytest.skip(f"the demo weights cannot be had: {error}")


def tiny_source(folder: Path) -> Path:
    """Write a Baichuan2-7B in small, in the official form: W_pack, NormHead, a tokenizer that names code."""
    write_official(folder, rope_config(vocabulary_size=448), seed=7)
    write_sentencepiece(folder)
    (folder / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", null]},'
        ' "tokenizer_class": "BaichuanTokenizer"}'
    )
    return folder


def continue_greedily(engine: Engine, prompt: Sequence[int]) -> Answer:
    answer = Answer([], [])
    with engine.open_sequence() as sequence:
        for _ in range(COUNT):
            chunk = Chunk(sequence, answer.ids[-1:] or prompt)
            logits = engine.forward([chunk])[0][-1]
            second, first = np.argsort(logits)[-2:]
            answer.ids.append(int(first))
            answer.leads.append(float(logits[first] - logits[second]))
    return answer


def make(folder: Path, name: str, bits: int) -> Made:
    source = {"demo": demo_source, "tiny": tiny_source}[name](folder / f"{name}-float-{bits}")
    target = folder / f"{name}-{bits}"
    quantize(source, target, bits=bits)
    with load(target, exact=True, keep_packed=False) as model:  # others round no activations
        prompts = [model.tokens(text) for text in BEGINNINGS]
        answers = [continue_greedily(model.engine, prompt) for prompt in prompts]
        return Made(target, prompts, answers, [model.tokens(text) for text in TEXTS])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    folder = tmp_path_factory.mktemp("peers")
    return {f"{name}-{bits}": make(folder, name, bits) for name in ("demo", "tiny") for bits in (4, 8)}


@pytest.fixture(scope="module", params=["transformers", "gptqmodel"])
def readings(request: pytest.FixtureRequest, checkpoints: dict[str, Made]) -> dict[str, dict[str, Any]]:
    """What another tool makes of all of them, in one process."""
    try:
        install(GPTQ_READERS)
    except PeerMissingError as missing:
        pytest.skip(str(missing))
    questions = {name: made.question() for name, made in checkpoints.items()}
    return ask(GPTQ_READERS, "read_checkpoint.py", {"tool": request.param, "checkpoints": questions})


@pytest.mark.parametrize("name", ["demo-4", "demo-8", "tiny-4", "tiny-8"])
def test_another_tool_says_the_same_words(
    readings: dict[str, dict[str, Any]], checkpoints: dict[str, Made], name: str
) -> None:
    # transformers answered with a head of random numbers, GPTQModel refused the file.
    reading, made = readings[name], checkpoints[name]
    assert "TorchLinear" in reading["modules"], "the layers were not read as quantised ones"
    others = made.other_words(reading["best"])
    assert not others, others
    assert reading["texts"] == made.texts
