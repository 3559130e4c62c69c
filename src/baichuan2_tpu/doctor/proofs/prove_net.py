"""Compute with a compiled model: compare a layer with numpy, or without a checkpoint an answer with itself.

The layer is the first, for the first token of a sequence: the embedding and one launch. Not here: numpy's
part (``reference.layer``), the process that this runs in (``child_process``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.layout import EMBEDDING
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.engine.base import Chunk, Engine
from baichuan2_tpu.engine.compiled.block_loop import BlockLoop
from baichuan2_tpu.engine.compiled.net_plan import plan_nets
from baichuan2_tpu.engine.compiled.open_bundle import OpenDevice, buffer_bytes, map_embedding
from baichuan2_tpu.engine.compiled.rows import RowAllocator
from baichuan2_tpu.engine.compiled.stage_costs import StageCosts
from baichuan2_tpu.engine.compiled.step import Step, Work
from baichuan2_tpu.engine.device.base import Device
from baichuan2_tpu.errors import BackendError, RequestError
from baichuan2_tpu.manifest import Manifest, is_bundle
from baichuan2_tpu.reference.layer import first_layer_outputs
from baichuan2_tpu.reference.operations import relative_error

__all__ = ["check_layer", "check_twice"]

Floats = NDArray[np.float32]

_TOKENS = (7, 8, 9)
_MOST_ERROR = {"float16": 0.02, "bfloat16": 0.08}
"""Relative, of what the layer adds to the embedding's row; measured on the simulator: 0.0008 and 0.005.
The same weights at 8 bits in place of 4 give 0.15."""


def check_twice(engine: Engine) -> str:
    """Run the same tokens twice, and describe the result.

    Raises: BackendError where the logits differ or are not finite.
    """
    first, second = _compute_logits(engine), _compute_logits(engine)
    if not np.isfinite(first.max()):
        raise BackendError(
            f"engine {engine.name} gave no finite logits; the bundle may be damaged, so copy it again"
        )
    if not np.array_equal(first, second):
        raise BackendError(
            f"engine {engine.name} gave different logits for the same {len(_TOKENS)} tokens; check the "
            "temperature and the driver, then compile the bundle again"
        )
    return f"the same {len(_TOKENS)} tokens gave equal logits twice; to compare with numpy, add --checkpoint"


def _compute_logits(engine: Engine) -> Floats:
    with engine.open_sequence() as sequence:
        (logits,) = engine.forward([Chunk(sequence, _TOKENS)])
        return logits


def check_layer(folder: Path, checkpoint: Path, open_device: OpenDevice) -> str:
    """Launch the first layer for one token, compare it with numpy's, and describe the result.

    Raises: RequestError for a folder without a manifest or a checkpoint of another shape; BackendError where
    the layer is wrong; whatever opening either of them raises.
    """
    if not is_bundle(folder):
        raise RequestError(
            f"{folder}: has no manifest; only a bundle of baichuan2 compile contains the integers of a "
            "checkpoint, so leave --checkpoint out"
        )
    manifest, weights = Manifest.read(folder), QuantizedCheckpoint(checkpoint)
    configs = manifest.model, weights.config
    sizes = [(config.layers, config.hidden_size, config.vocabulary_size) for config in configs]
    if sizes[0] != sizes[1]:
        raise RequestError(
            f"{checkpoint}: has layers, hidden size and vocabulary {sizes[1]}, the bundle {sizes[0]}; "
            f"name the checkpoint it was compiled from ({manifest.source})"
        )
    row = weights.array(EMBEDDING)[_TOKENS[0]].astype(np.float64)
    with open_device(folder / manifest.bmodel, buffer_bytes(manifest)) as device:
        states, layers = _first_states(device, folder, manifest)
    expected = row
    for layer in range(layers):
        expected = first_layer_outputs(weights, layer, expected).states
    error = relative_error(states - row, expected - row)
    most = _MOST_ERROR[manifest.dtype]
    if not error <= most:
        raise BackendError(
            f"a layer on the device differs from {checkpoint} by {error:.1e}, at most {most:g} is allowed; "
            "compile the bundle again from this checkpoint"
        )
    return f"the first net differs from numpy by {error:.1e}, at most {most:g} is allowed"


def _first_states(device: Device, folder: Path, manifest: Manifest) -> tuple[Floats, int]:
    """Return the states of one token behind the first net, and how many layers that holds. Shapes: (E,)."""
    plan = plan_nets(device.nets)
    plan = replace(plan, layers_of_net=plan.layers_of_net[:1])
    embedding = map_embedding(folder, manifest) if manifest.embedding == "disk" else None
    costs, nothing = StageCosts(plan), np.zeros(0, np.int32)
    loop = BlockLoop(device, plan, costs, embedding)
    work = Work(nothing, nothing, np.array(_TOKENS[:1], np.int32), np.zeros((0, 0), np.float32))
    launch = next(Step(plan, costs, RowAllocator(plan.rows), [work]).launches())
    loop.run(launch)
    return loop.states(launch)[0], plan.layers
