"""Load checkpoint folders in another tool, as that tool's documentation says, and tell what it makes of them.

The kernels are those in plain torch: the ones that GPTQModel would choose are compiled first, for minutes.
Reads a question from standard input: ``tool``, and ``checkpoints`` by name, each with its ``folder``,
``prompts`` (lists of ids) and ``texts`` (to encode). Prints one line: by name the most likely id behind every
id of each prompt, the ids of each text, and the classes of the modules.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # or every matrix is compiled too

import torch


def open_transformers(folder: str) -> tuple[Any, Any]:
    """Return the model and the tokenizer that transformers makes of a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig  # noqa: PLC0415

    # Of these settings only the backend counts; the others are the checkpoint's own.
    plain = GPTQConfig(bits=4, backend="gptq_torch")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=plain)
    return model, AutoTokenizer.from_pretrained(folder)


def open_gptqmodel(folder: str) -> tuple[Any, Any]:
    """Return the model and the tokenizer that GPTQModel makes of a folder."""
    from gptqmodel import BACKEND, GPTQModel  # noqa: PLC0415

    loaded = GPTQModel.load(folder, device="cpu", dtype=torch.float16, backend=BACKEND.GPTQ_TORCH)
    return loaded.model, loaded.tokenizer


TOOLS = {"transformers": open_transformers, "gptqmodel": open_gptqmodel}


def read(tool: str, folder: str, prompts: list[list[int]], texts: list[str]) -> dict[str, Any]:
    """Return what a tool makes of one folder."""
    model, tokenizer = TOOLS[tool](folder)
    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([prompt])).logits[0] for prompt in prompts]
    return {
        "best": [rows.argmax(dim=-1).tolist() for rows in logits],
        "texts": [tokenizer.encode(text) for text in texts],
        "modules": sorted({type(module).__name__ for module in model.modules()}),
    }


def main() -> None:
    """Answer the question."""
    question = json.load(sys.stdin)
    torch.set_num_threads(2)
    answer = {name: read(question["tool"], **facts) for name, facts in question["checkpoints"].items()}
    print(json.dumps({"answer": answer}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
