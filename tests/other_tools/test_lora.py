"""Adapters that PEFT saves give the logits of PEFT's own merge.

Needs torch, transformers and PEFT, which BAICHUAN2_TEST_PEERS=1 installs from PyPI.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.reference.float_model import FloatModel
from models.tiny_checkpoint import float_weights, official_tensors, rope_config, write_config
from other_tools.environments import ADAPTERS, PeerMissingError, ask, install

pytestmark = pytest.mark.skipif(
    os.environ.get("BAICHUAN2_TEST_PEERS") != "1",
    reason="set BAICHUAN2_TEST_PEERS=1; it installs torch, transformers and PEFT (1 GB, in the cache)",
)

OFFICIAL = rope_config()
LLAMA = rope_config(kv_heads=2, is_head_normalized=False)
TOKENS = [5, 6, 7, 300, 9, 11]
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[ModelConfig, list[dict[str, Any]]]] = {
    "split": (LLAMA, [{"target_modules": [*ATTENTION, *MLP]}]),
    "W_pack": (OFFICIAL, [{"target_modules": ["W_pack", "o_proj", *MLP]}]),
    "W_pack, rsLoRA and patterns": (
        OFFICIAL,
        [
            {
                "target_modules": ["W_pack", "down_proj"],
                "use_rslora": True,
                "rank_pattern": {"layers.1.self_attn.W_pack": 6},
                "alpha_pattern": {r"^model\.layers\.0\..*": 20, "down_proj": 3},
            }
        ],
    ),
    "the head, and tensors trained whole": (
        OFFICIAL,
        [{"target_modules": ["W_pack", "lm_head"], "modules_to_save": ["embed_tokens", "norm"]}],
    ),
    "split, the head whole": (
        LLAMA,
        [{"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"]}],
    ),
    "several in order": (
        OFFICIAL,
        [
            {"target_modules": ["W_pack"], "r": 16},
            {"target_modules": MLP, "modules_to_save": ["lm_head"]},
            {"target_modules": ["W_pack"], "lora_alpha": 3},
        ],
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _peft() -> None:
    try:
        install(ADAPTERS)
    except PeerMissingError as missing:
        pytest.skip(str(missing))


def write_base(folder: Path, config: ModelConfig) -> Path:
    folder.mkdir()
    write_config(folder, config)
    tensors = official_tensors(config, 0) if config.is_head_normalized else float_weights(config, 0)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("is_bin", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("case", CASES)
def test_merged_logits_are_those_of_pefts_merge(tmp_path: Path, case: str, is_bin: bool) -> None:
    config, settings = CASES[case]
    base = write_base(tmp_path / "base", config)
    folders = [tmp_path / f"adapter-{number}" for number in range(len(settings))]
    adapters = [
        {"folder": str(folder), "settings": {"r": 4, "lora_alpha": 8} | changes, "is_bin": is_bin}
        for folder, changes in zip(folders, settings, strict=True)
    ]
    values = replace(config, is_head_normalized=False).to_json()
    question = {
        "base": str(base / "model.safetensors"),
        "config": {key: values[key] for key in values if key not in ("architectures", "torch_dtype")},
        "adapters": adapters,
        "is_head_normalized": config.is_head_normalized,
        "tokens": TOKENS,
    }
    expected = np.array(ask(ADAPTERS, "merge_adapters.py", question)["logits"])
    model = FloatModel(FloatCheckpoint.open(base, folders))
    found = model.logits(model.run(np.array([TOKENS]))[0])
    plain = FloatModel(FloatCheckpoint.open(base))
    change = np.abs(plain.logits(plain.run(np.array([TOKENS]))[0]) - expected).max()
    error = np.abs(found - expected).max()
    assert error < 1e-4 < change, f"largest error {error}, the adapters change logits by {change}"
