"""Prove an installed TPU-MLIR: compile one small layer, run it on the simulator, compare it with numpy.

The simulator runs in a process of its own, for it prints on standard output and ends its process on a fault.
Not here: installing (``toolchain``), real models (``compile``, ``engine``).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.layout import ATTENTION_OUTPUT, DOWN, GATE, QKV, UP
from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.compile.net_weights import block_weights
from baichuan2_tpu.compile.nets import COSINES, SINES, block_net
from baichuan2_tpu.compile.settings import CompileSettings, compiled_group_size
from baichuan2_tpu.compile.tpuc import Compiler
from baichuan2_tpu.engine.device.bmrt import BmrtDevice
from baichuan2_tpu.errors import BackendError
from baichuan2_tpu.manifest import Stage
from baichuan2_tpu.reference.operations import relative_error, rms_norm, rotate, softmax, swiglu
from baichuan2_tpu.shapes import shape_config
from baichuan2_tpu.toolchain import Toolchain, find_simulator

__all__ = ["SelfCheck", "check_toolchain", "simulate"]

Arrays = Mapping[str, NDArray[Any]]
Values = NDArray[np.float64]

_CONFIG = replace(shape_config("tiny", 4), layers=1)
_TOKENS = 16
_STAGE = Stage(_TOKENS, 64)
_SETTINGS = CompileSettings(
    bits=4, head="w8", context=64, rows=64, stages=(Stage(1, 64), _STAGE), layers_per_net=1
)
_GROUP_SIZE = compiled_group_size(_CONFIG)
_HISTORY = 9
_MASKED = -10_000.0
_SCALE = 4.0
"""Makes the layer's own part of its output as large as the states that are added to it."""
_MOST_ERROR = 0.01
"""Relative; measured: 0.0006, which is float16's own. A history shifted by one token gives 0.2."""

_WEIGHTS, _INPUTS, _OUTPUTS = "weights.npz", "inputs.npz", "outputs.npz"
# -c takes modules of the current folder first, which may be anybody's: that entry of the path is empty.
_SIMULATION = (
    "import sys; sys.path[:] = filter(None, sys.path);"
    "from baichuan2_tpu.doctor.proofs.prove_toolchain import simulate; simulate(*sys.argv[1:])"
)


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """What the check measured. Units: ``error`` is relative, the largest of the three outputs'."""

    error: float
    compile_s: float
    simulate_s: float


def check_toolchain(toolchain: Toolchain) -> SelfCheck:
    """Compile a layer of random weights, simulate it after a random history, compare all its outputs.

    Raises: CompileError when it does not compile; BackendError when it does not run or the result is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="baichuan2-check-") as name:
        folder = Path(name)
        weights = _write_weights(folder)
        inputs = _write_inputs(folder)
        started = time.perf_counter()
        bmodel = _compile(toolchain, folder)
        compiled = time.perf_counter()
        _simulate_apart(bmodel, find_simulator(toolchain.root))
        simulated = time.perf_counter()
        with np.load(folder / _OUTPUTS) as outputs:
            error = largest_error(expected_outputs(weights, inputs), list(outputs.values()))
    if not error <= _MOST_ERROR:
        raise BackendError(
            f"a simulated layer differs from numpy by {error:.2g}, at most {_MOST_ERROR} is allowed; run "
            "baichuan2 toolchain remove, then install"
        )
    return SelfCheck(error, compiled - started, simulated - compiled)


def simulate(bmodel: str, simulator: str) -> None:
    """Run the bmodel's only net on the inputs beside it, and write its outputs there.

    Raises: BackendError and its like from the device.
    """
    path = Path(bmodel)
    with np.load(path.with_name(_INPUTS)) as inputs, BmrtDevice(path, simulator=Path(simulator)) as device:
        ((net, info),) = device.nets.items()
        sources = [device.input(net, index) for index in range(len(info.stages[0].inputs))]
        results = [device.output(net, index) for index in range(len(info.stages[0].outputs))]
        for buffer, values in zip(sources, inputs.values(), strict=True):
            device.upload(buffer, values)
        device.launch(net, 0, sources, results)
        outputs = {str(index): device.download(buffer) for index, buffer in enumerate(results)}
        np.savez(path.with_name(_OUTPUTS), **outputs)  # pyright: ignore[reportArgumentType] - numpy's stub


def expected_outputs(weights: Arrays, inputs: Arrays) -> list[Values]:
    """Compute the layer in float64 from the very arrays that the compiler reads.

    Shapes: states (1, T, E), keys and values (1, T, KV, D).
    """
    states = inputs["states"][0].astype(np.float64)
    normed = _norm(states)
    queries, keys, values = (
        (normed @ _matrix(weights, name).T).reshape(_TOKENS, -1, _CONFIG.head_size) for name in QKV
    )
    queries, keys = (_turn(weights, inputs["positions"][0], heads) for heads in (queries, keys))
    mixed = _attend(
        queries,
        np.concatenate([inputs["history_k"][0, :_HISTORY], keys]),
        np.concatenate([inputs["history_v"][0, :_HISTORY], values]),
    )
    states = states + mixed @ _matrix(weights, ATTENTION_OUTPUT).T
    normed = _norm(states)
    gate, up = (normed @ _matrix(weights, name).T for name in (GATE, UP))
    states = states + swiglu(gate, up) @ _matrix(weights, DOWN).T
    return [states[None], keys[None], values[None]]


def _norm(states: Values) -> Values:
    """Normalise; the random model's norms are ones."""
    return rms_norm(states, np.ones(_CONFIG.hidden_size), _CONFIG.norm_eps)


def _matrix(weights: Arrays, name: str) -> Values:
    """Return the floats of a packed layer. Shapes: (N, K)."""
    packed = weights[f"0.{name}.qweight"]
    integers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)
    scales, zeros = (
        np.repeat(weights[f"0.{name}.{part}"], _GROUP_SIZE, axis=1).astype(np.float64)
        for part in ("scales", "qzeros")
    )
    return (integers - zeros) * scales


def _turn(weights: Arrays, positions: NDArray[Any], heads: Values) -> Values:
    """Apply RoPE with the tables that the compiler reads. Shapes: (T, H, D)."""
    pairs = heads.shape[-1] // 2  # the second half of a row repeats the first
    cosines, sines = (
        weights[f"{name}.weight"][positions, :, :pairs].astype(np.float64) for name in (COSINES, SINES)
    )
    return rotate(heads, cosines, sines)


def _attend(queries: Values, keys: Values, values: Values) -> Values:
    """Attend to the history and to what came before. Shapes: (T, H, D), (S, H, D), (S, H, D) → (T, H * D)."""
    scores = np.einsum("thd,shd->hts", queries, keys) / np.sqrt(_CONFIG.head_size)
    is_later = np.arange(len(keys)) > np.arange(len(queries))[:, None] + _HISTORY
    shares = softmax(np.where(is_later, -np.inf, scores))
    return np.einsum("hts,shd->thd", shares, values).reshape(len(queries), -1)


def _write_weights(folder: Path) -> Arrays:
    arrays = block_weights(RandomWeights(_CONFIG), _SETTINGS, 0)
    arrays = {
        name: values * np.float32(_SCALE) if name.endswith(".scales") else values
        for name, values in arrays.items()
    }
    np.savez(folder / _WEIGHTS, **arrays)  # pyright: ignore[reportArgumentType] - numpy's stub
    return arrays


def _write_inputs(folder: Path) -> Arrays:
    """Write random states and a random history, in the order of the net's inputs."""
    generator = np.random.default_rng(0)
    context, tokens = _SETTINGS.context, _TOKENS
    mask = np.full((1, 1, tokens, context + tokens), _MASKED, np.float16)
    mask[..., :_HISTORY] = 0
    mask[..., context:][..., np.tri(tokens, dtype=bool)] = 0
    history = generator.standard_normal((2, 1, context, _CONFIG.kv_heads, _CONFIG.head_size))
    inputs: dict[str, NDArray[Any]] = {
        "states": generator.standard_normal((1, tokens, _CONFIG.hidden_size)).astype(np.float16),
        "positions": np.arange(_HISTORY, _HISTORY + tokens, dtype=np.int32)[None],
        "mask": mask,
        "history_k": history[0].astype(np.float16),
        "history_v": history[1].astype(np.float16),
    }
    np.savez(folder / _INPUTS, **inputs)  # pyright: ignore[reportArgumentType] - numpy's stub
    return inputs


def _compile(toolchain: Toolchain, folder: Path) -> Path:
    """Compile the layer and return its bmodel, beside the inputs."""
    stage = folder / "stage"
    stage.mkdir()
    net = block_net(_CONFIG, _SETTINGS, 0, _STAGE)
    bmodel = Compiler(toolchain, logs=folder).compile(net, stage)
    return bmodel.rename(folder / bmodel.name)


def _simulate_apart(bmodel: Path, simulator: Path) -> None:
    """Run ``simulate`` in a process of its own."""
    command = [sys.executable, "-c", _SIMULATION, str(bmodel), str(simulator)]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603 - a list, no shell
    if run.returncode != 0:
        lines = (run.stderr or run.stdout).strip().splitlines() or ["(nothing)"]
        raise BackendError(
            f"the simulator ended with code {run.returncode}, its last line: {lines[-1]}; run "
            "baichuan2 toolchain remove, then install"
        )


def largest_error(expected: Sequence[Values], outputs: Sequence[NDArray[Any]]) -> float:
    """Return the largest relative error among outputs."""
    return max(relative_error(values, right) for values, right in zip(outputs, expected, strict=True))
