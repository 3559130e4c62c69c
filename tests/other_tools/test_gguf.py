"""GGUF files give the tokens that llama.cpp gives: rows of q and k and positions are where they belong.

Needs xllamacpp, which BAICHUAN2_TEST_PEERS=1 installs from PyPI.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.reference.float_model import FloatModel
from models.tiny_checkpoint import alibi_config, float_weights, rope_config
from models.tiny_gguf import write_gguf
from other_tools.environments import LLAMA_CPP, PeerMissingError, ask, install

pytestmark = pytest.mark.skipif(
    os.environ.get("BAICHUAN2_TEST_PEERS") != "1",
    reason="set BAICHUAN2_TEST_PEERS=1; it installs xllamacpp (60 MB, in the cache)",
)

F32 = GGMLQuantizationType.F32
COMMON = {"is_head_normalized": False, "vocabulary_size": 264}
PROMPTS = [[5, 6, 7, 200, 9, 11, 40, 41], [12], [100, 3, 3, 3, 90]]
COUNT = 10
ENDS = [0, 2]
"""What llama.cpp takes for an end by its name or id, and never chooses with ignore_eos."""
# llama.cpp knows a Baichuan by its layers: 32 have RoPE, 40 ALiBi.
CASES = {
    "llama": ("llama", rope_config(kv_heads=2, **COMMON)),
    "llama, tied": ("llama", rope_config(is_head_tied=True, **COMMON)),
    "baichuan 7B": ("baichuan", rope_config(layers=32, **COMMON)),
    "baichuan 13B": ("baichuan", alibi_config(layers=40, **COMMON)),
}


@pytest.fixture(scope="module", autouse=True)
def _llama_cpp() -> None:
    try:
        install(LLAMA_CPP)
    except PeerMissingError as missing:
        pytest.skip(str(missing))


def continue_greedily(path: Path, prompt: list[int]) -> list[int]:
    model, ids = FloatModel(FloatCheckpoint.open(path)), list(prompt)
    for _ in range(COUNT):
        states = model.run(np.array([ids]))[0]
        logits = model.logits(states[-1:])[0]
        logits[ENDS] = -np.inf
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_those_of_llama_cpp(tmp_path: Path, case: str) -> None:
    architecture, config = CASES[case]
    path = write_gguf(
        tmp_path / "m.gguf", config, float_weights(config, 0), architecture=architecture, kind=F32
    )
    expected = ask(LLAMA_CPP, "run_llama_cpp.py", {"gguf": str(path), "prompts": PROMPTS, "count": COUNT})
    assert [continue_greedily(path, prompt) for prompt in PROMPTS] == expected["ids"]
