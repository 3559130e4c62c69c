"""The small files of a quantised checkpoint: config, generation settings, index and tokenizer.

No ``.py`` file is ever copied: nothing in a checkpoint is code to us.
Source: ``generation_config.json`` of Baichuan2-7B-Chat for the defaults.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.formats.gguf_tokenizer import check_tokenizer, write_tokenizer
from baichuan2_tpu.checkpoint.formats.safetensors_file import SafetensorsFile
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import write_json
from baichuan2_tpu.quantize.plan import Plan

__all__ = ["check_assets", "write_assets"]

_TOKENIZERS = ("tokenizer.model", "tokenizer.json")
_COPIED = (
    *_TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_BAICHUAN2_CHAT: dict[str, object] = {
    "max_new_tokens": 2048,
    "temperature": 0.3,
    "top_k": 5,
    "top_p": 0.85,
    "repetition_penalty": 1.05,
    "do_sample": True,
}
_GREEDY: dict[str, object] = {"do_sample": False, "repetition_penalty": 1.0}


def check_assets(checkpoint: FloatCheckpoint) -> None:
    """Check, before any work, that the source has a tokenizer that can be carried over.

    Raises: CheckpointError saying what was looked for.
    """
    source = checkpoint.path
    if checkpoint.metadata is not None:
        check_tokenizer(source, checkpoint.metadata)
    elif not any((source / name).is_file() for name in _TOKENIZERS):
        raise CheckpointError(
            f"{source}: holds neither {' nor '.join(_TOKENIZERS)}; fetch the tokenizer of the model"
        )


def write_assets(checkpoint: FloatCheckpoint, directory: Path, plan: Plan) -> None:
    """Write everything but the weights."""
    source, config = checkpoint.path, checkpoint.config
    if checkpoint.metadata is not None:
        write_tokenizer(checkpoint.metadata, directory)
    else:
        for name in _COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, directory / name)
    if not (directory / "generation_config.json").exists():
        defaults = _BAICHUAN2_CHAT if config.is_head_normalized else _GREEDY
        ids: dict[str, object] = {"bos_token_id": config.bos_id, "eos_token_id": list(config.eos_ids)}
        write_json(directory / "generation_config.json", defaults | ids)
    write_json(directory / "model.safetensors.index.json", _index(directory, plan))
    merged = [adapter.record for adapter in checkpoint.adapters]
    values = plan.config.to_json() | ({"merged_adapters": merged} if merged else {})
    write_json(directory / "config.json", values)


def _index(directory: Path, plan: Plan) -> dict[str, object]:
    """Return the index of the shards, read from their headers."""
    weight_map: dict[str, str] = {}
    for shard in plan.shards:
        file = SafetensorsFile(directory / shard.file)
        weight_map |= dict.fromkeys(file.tensors, shard.file)
        file.close()
    return {"metadata": {"total_size": plan.size_bytes}, "weight_map": dict(sorted(weight_map.items()))}
