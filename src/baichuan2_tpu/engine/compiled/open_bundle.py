"""Open a compiled bundle on a device, once everything that its manifest says is found to be so.

Not here: making bundles (``compile``), which device a user meant (``registry``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.compiled.engine import BmodelEngine
from baichuan2_tpu.engine.compiled.net_plan import NetPlan, plan_nets
from baichuan2_tpu.engine.compiled.stage_costs import StageCosts
from baichuan2_tpu.engine.device.base import DTYPES, Device
from baichuan2_tpu.errors import ArtifactError, BackendError
from baichuan2_tpu.manifest import Manifest

__all__ = ["OpenDevice", "buffer_bytes", "map_embedding", "open_bundle"]

OpenDevice = Callable[[Path, int], Device]
"""Load a bmodel, where so many bytes of device memory will be needed beside it."""

_EMBEDDING_FILE = "embedding.bin"
_DIGEST_LIMIT_BYTES = 1 << 20  # the sha256 of 4 GB would take seconds at every start
_FLOAT32_BYTES = 4


def open_bundle(folder: Path, open_device: OpenDevice, *, context: int | None = None) -> BmodelEngine:
    """Open the bundle in ``folder``.

    Small files are compared with their digest, large ones with their size.
    Raises: ArtifactError where the bundle is damaged or its parts do not fit each other; RequestError for a
    context it was not compiled for; BackendError where the device cannot take it.
    """
    manifest = Manifest.read(folder)
    manifest.verify(folder, digest_limit_bytes=_DIGEST_LIMIT_BYTES)
    context = manifest.checked_context(context)
    if manifest.devices > 1:
        raise BackendError(
            f"{folder}: was compiled for {manifest.devices} devices, this engine drives one; "
            "compile with --devices 1"
        )
    embedding = map_embedding(folder, manifest) if manifest.embedding == "disk" else None
    device = open_device(folder / manifest.bmodel, buffer_bytes(manifest))
    try:
        plan = plan_nets(device.nets)
        _check_plan(folder, manifest, plan)
        costs = StageCosts.from_manifest(manifest, plan)
        return BmodelEngine(device, plan, manifest.model, costs=costs, embedding=embedding, context=context)
    except BaseException:
        device.close()
        raise


def buffer_bytes(manifest: Manifest) -> int:
    """Count what the engine allocates on the device: the head's outputs and the embedding's inputs."""
    sizes = {stage.tokens for stage in manifest.stages}
    ids = sum(sizes) if manifest.embedding == "device" else 0
    logits = sum(manifest.head_rows) * manifest.model.vocabulary_size
    return (logits + ids) * _FLOAT32_BYTES


def map_embedding(folder: Path, manifest: Manifest) -> NDArray[Any]:
    """Map the rows of the embedding. Shapes: (V, E)."""
    path = folder / _EMBEDDING_FILE
    shape = (manifest.model.vocabulary_size, manifest.model.hidden_size)
    dtype = DTYPES[manifest.dtype]
    expected_bytes = shape[0] * shape[1] * dtype.itemsize
    nbytes = path.stat().st_size if path.is_file() else 0
    if nbytes != expected_bytes:
        raise ArtifactError(
            f"{path}: has {nbytes} bytes, {list(shape)} of {manifest.dtype} take {expected_bytes}; "
            "copy the bundle again"
        )
    return np.memmap(path, dtype, mode="r", shape=shape)


def _check_plan(folder: Path, manifest: Manifest, plan: NetPlan) -> None:
    """Compare the nets with the manifest."""
    model = manifest.model
    expected: Mapping[str, object] = {
        "layers": model.layers,
        "block nets": len(manifest.block_nets),
        "hidden size": model.hidden_size,
        "key-value heads": model.kv_heads,
        "head size": model.head_size,
        "rows of history": manifest.rows,
        "dtype": manifest.dtype,
        "stages": [tuple(stage) for stage in manifest.stages],
        "rows of the head": list(manifest.head_rows),
        "output of the head": manifest.head_output,
        "has an embedding": manifest.embedding == "device",
    }
    actual: Mapping[str, object] = {
        "layers": plan.layers,
        "block nets": len(plan.layers_of_net),
        "hidden size": plan.hidden_size,
        "key-value heads": plan.kv_heads,
        "head size": plan.head_size,
        "rows of history": plan.rows,
        "dtype": plan.dtype,
        "stages": [(stage.tokens, stage.history) for stage in plan.stages],
        "rows of the head": [stage.tokens for stage in plan.head.stages],
        "output of the head": plan.head.output,
        "has an embedding": bool(plan.embeddings),
    }
    if plan.head.output == "logits":
        expected = {**expected, "vocabulary": model.vocabulary_size}
        actual = {**actual, "vocabulary": plan.head.candidates}
    for name, value in expected.items():
        if actual[name] != value:
            raise ArtifactError(
                f"{folder / manifest.bmodel}: {name} is {actual[name]}, the manifest says {value}; "
                "compile the bundle again"
            )
