"""Open a bmodel that has no manifest, as the ones the vendor ships: what it is, its nets tell.

They do not tell the vocabulary: a head that takes the best token itself has no trace of it. So the
checkpoint's ``config.json`` is read where it lies beside the bmodel, and else the model is taken for
Baichuan2-7B, the only one the vendor ships.
Not here: bundles (``open_bundle``), which nets to launch (``net_plan``).
Source: sample/Baichuan2 of sophgo/sophon-demo: scripts/download.sh, scripts/gen_bmodel.sh.
"""

from __future__ import annotations

from pathlib import Path

from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.engine.compiled.engine import BmodelEngine
from baichuan2_tpu.engine.compiled.net_plan import NetPlan, plan_nets
from baichuan2_tpu.engine.compiled.open_bundle import OpenDevice
from baichuan2_tpu.errors import ArtifactError
from baichuan2_tpu.shapes import SHAPES

__all__ = ["open_vendor_bmodel", "read_vendor_config"]

_CONFIG_NAME = "config.json"


def open_vendor_bmodel(bmodel: Path, open_device: OpenDevice, *, context: int | None = None) -> BmodelEngine:
    """Open a bmodel that has nets for the embedding, the blocks and the head, and no manifest.

    Raises: ArtifactError where its nets make no model, or another one than its config.json says; RequestError
    for a context it was not compiled for; BackendError where the device cannot take it.
    """
    config = read_vendor_config(bmodel.parent)
    # How much the history takes is known once the nets are; allocating it checks what is free.
    device = open_device(bmodel, 0)
    try:
        plan = plan_nets(device.nets)
        _check_plan(bmodel, plan, config)
        return BmodelEngine(device, plan, config, context=context)
    except BaseException:
        device.close()
        raise


def read_vendor_config(folder: Path) -> ModelConfig:
    """Return the dimensions of the model whose bmodel lies in ``folder``.

    Raises: CheckpointError when there is a config.json that cannot be read.
    """
    path = folder / _CONFIG_NAME
    if not path.is_file():
        return SHAPES["baichuan2-7b"]
    return ModelConfig.read(path)


def _check_plan(bmodel: Path, plan: NetPlan, config: ModelConfig) -> None:
    """Compare the nets with the dimensions of the model that they are taken for."""
    if not plan.embeddings:
        raise ArtifactError(
            f"{bmodel}: has no net embedding, so it is part of a bundle; name the folder of the bundle"
        )
    pairs = {
        "layers": (plan.layers, config.layers),
        "hidden size": (plan.hidden_size, config.hidden_size),
        "key-value heads": (plan.kv_heads, config.kv_heads),
        "head size": (plan.head_size, config.head_size),
    }
    if plan.head.output == "logits":
        pairs["vocabulary"] = (plan.head.candidates, config.vocabulary_size)
    for name, (actual, expected) in pairs.items():
        if actual != expected:
            source = _CONFIG_NAME if (bmodel.parent / _CONFIG_NAME).is_file() else "Baichuan2-7B"
            raise ArtifactError(
                f"{bmodel}: {name} is {actual}, {source} has {expected}; "
                f"put the {_CONFIG_NAME} of the model it was compiled from beside it"
            )
