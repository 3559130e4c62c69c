"""Train nothing: attach LoRA adapters to a tiny model with PEFT, save them, merge them, and tell the logits.

Reads a question from standard input: ``base`` (a safetensors file, with W_pack or without), ``config``
(of LlamaForCausalLM), ``adapters`` (each with ``folder``, ``settings`` of a LoraConfig and ``is_bin``),
``is_head_normalized`` and ``tokens``. An adapter is made for the model that has those before it in it.
Prints one line: the logits of every token.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

PACKED, SPLIT = "self_attn.W_pack", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


class Plain(torch.nn.Module):
    """A norm's weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(size))


def build_skeleton(tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Return modules of these names: what PEFT sees of a model whose code is not at hand."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        *parents, last = name.removesuffix(".weight").split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, torch.nn.Module())
            module = getattr(module, parent)
        if last == "embed_tokens":
            leaf: torch.nn.Module = torch.nn.Embedding(*tensor.shape)
        elif tensor.ndim > 1:
            leaf = torch.nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
        else:
            leaf = Plain(len(tensor))
        module.add_module(last, leaf)
    root.load_state_dict(tensors)
    return root


def merge(model: Any, adapter: dict[str, Any], seed: int) -> Any:
    """Save a random adapter of a model, load it again as its user would, and merge it."""
    torch.manual_seed(seed)
    tuned = get_peft_model(model, LoraConfig(init_lora_weights=False, **adapter["settings"]))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "modules_to_save" in name:
                weight.add_(torch.randn_like(weight), alpha=0.1)
    tuned.save_pretrained(adapter["folder"], safe_serialization=not adapter["is_bin"])
    base = tuned.unload()
    return PeftModel.from_pretrained(base, adapter["folder"]).merge_and_unload()


def split_packed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors in Llama's layout; a tiny Baichuan has as many keys as queries."""
    split: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        names = [name.replace(PACKED, part) for part in SPLIT] if PACKED in name else [name]
        split |= dict(zip(names, tensor.chunk(len(names)), strict=True))
    return split


def main() -> None:
    """Answer the question."""
    question = json.load(sys.stdin)
    tensors = load_file(question["base"])
    llama = LlamaForCausalLM(LlamaConfig(**question["config"], attn_implementation="eager"))
    if any(PACKED in name for name in tensors):
        model: Any = build_skeleton(tensors)
    else:
        model = llama
        model.load_state_dict(tensors)
    for seed, adapter in enumerate(question["adapters"]):
        model = merge(model, adapter, seed)
    merged = split_packed({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    if question["is_head_normalized"]:
        merged["lm_head.weight"] = torch.nn.functional.normalize(merged["lm_head.weight"])
    llama = LlamaForCausalLM(LlamaConfig(**question["config"], attn_implementation="eager")).eval()
    llama.load_state_dict(merged)
    with torch.inference_mode():
        logits = llama(input_ids=torch.tensor([question["tokens"]])).logits[0]
    print(json.dumps({"answer": {"logits": logits.tolist()}}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
