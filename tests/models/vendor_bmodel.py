"""Tiny bmodels made the vendor's way: ONNX graphs, model_transform, model_deploy, model_tool --combine.

The vendor's Python programs want Python 3.10 and TPU-MLIR's wheel, in an environment of their own in the
user's cache: a minute and 1.2 GB once, then another minute for the bmodels, which are kept there too.
Nothing of the package needs any of this.
Not here: the graphs (``vendor_graphs``).
Source: sample/Baichuan2/scripts/gen_bmodel.sh of sophgo/sophon-demo; requirements of tpu_mlir 1.30.2.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.fetch import cache_folder, download_wheel
from baichuan2_tpu.toolchain.contents import COMPILER
from models.tiny_checkpoint import float_weights, rope_config

__all__ = [
    "VENDOR_CONFIG",
    "Bits",
    "Route",
    "RouteMissingError",
    "build_vendor_bmodels",
    "find_route",
    "vendor_weights",
]

Bits = Literal["int8", "int4"]
Weights = dict[str, NDArray[np.float32]]

VENDOR_CONFIG: ModelConfig = rope_config(
    is_head_normalized=False,
    heads=2,
    kv_heads=2,
    head_size=64,
    vocabulary_size=400,
    # Where the context equals the head size, this route of 1.30.2 multiplies with the wrong side of the keys.
    max_context=80,
)

_GROUP = 64
_INSTALL_VARIABLE = "BAICHUAN2_TEST_TOOLCHAIN"
_HOW_TO_ENABLE = f"set {_INSTALL_VARIABLE}=1 to make it (1.2 GB in the user's cache, once)"
_GRAPHS = Path(__file__).with_name("vendor_graphs.py")

_REQUIREMENTS = (
    "filelock==3.20.0",
    "numpy==1.24.3",
    "onnx==1.14.1",
    "onnxruntime==1.16.3",
    "onnxsim==0.4.17",
    "pillow==10.0.0",
    "protobuf==3.20.3",
    "psutil==7.1.3",
    "tqdm==4.65.0",
)
"""What the two programs use of the wheel's 1.5 GB of requirements; of the rest only the names are needed."""

_STAND_INS = """\
import sys, types

class Anything:
    def __call__(self, *args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

names = ("torch", "cv2", "onnxruntime_extensions", "plotly", "plotly.graph_objects", "plotly.subplots")
for name in names:
    module = types.ModuleType(name)
    module.__path__ = []
    module.__getattr__ = lambda attribute: getattr(Anything(), attribute)
    sys.modules[name] = module
"""
"""A sitecustomize module: TPU-MLIR imports these packages at its start and calls none of them here."""

_GLIBC = ("libc.so.6", "libm.so.6", "libpthread.so.0")
"""The wheel's own glibc, with which its programs die on a newer system."""

_QUANTIZE: Mapping[Bits, Sequence[str]] = {
    "int8": ("--quantize", "W8F16"),
    "int4": ("--quantize", "W4BF16", "--q_group_size", "64"),
}
_KV_OUTPUTS = ("--quant_output", "--quant_output_list", "2,3")
_KV_OPTIONS: Mapping[str, Sequence[str]] = {
    "block": _KV_OUTPUTS,
    "block_cache": ("--quant_input", "--quant_input_list", "4,5", *_KV_OUTPUTS),
}
"""Keys and values in 16 bits; states and masks stay float32."""


class RouteMissingError(Exception):
    """The environment is not there; the message says how to get it."""


@dataclass(frozen=True)
class Route:
    """The environment of the vendor's programs."""

    root: Path

    def run(self, folder: Path, program: str, *arguments: str) -> None:
        """Run one of the environment's programs in ``folder``, its output going to ``log``."""
        environment = {
            "PATH": os.pathsep.join([str(self.root / "bin"), "/usr/bin", "/bin"]),
            "HOME": str(self.root),
        }
        with (folder / "log").open("a") as log:
            command = [str(self.root / "bin" / program), *arguments]
            done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
        assert done.returncode == 0, f"{' '.join(command)} failed; see {folder / 'log'}"


def find_route() -> Route:
    """Return the environment, made first where the variable asks for it.

    Raises: RouteMissingError saying how to enable it.
    """
    key = _digest(*_REQUIREMENTS, _STAND_INS, COMPILER.wheel.sha256)
    root = cache_folder() / "test-tools" / f"vendor-route-{key}"
    with _lock(root):
        if (root / "whole").exists():
            return Route(root)
        if os.environ.get(_INSTALL_VARIABLE) != "1":
            raise RouteMissingError(f"the vendor's ONNX route is not installed; {_HOW_TO_ENABLE}")
        _install(root)
    return Route(root)


def vendor_weights() -> Weights:
    """Return weights that the vendor's rounding to 8 or 4 bits leaves as they are, in Llama layout."""
    weights = float_weights(VENDOR_CONFIG, seed=0)
    return {name: _on_grid(one) if "_proj" in name else one for name, one in weights.items()}


def build_vendor_bmodels(route: Route) -> Path:
    """Return a folder with ``vendor_weights`` as bmodels.

    int8.bmodel and int4.bmodel have the form of baichuan2-7b_int8_1dev and its int4 sister; lm_head.bmodel is
    a part of both.
    """
    weights = vendor_weights()
    sources = [_GRAPHS.read_text("utf-8"), Path(__file__).read_text("utf-8")]
    sources += [hashlib.sha256(one.tobytes()).hexdigest() for one in weights.values()]
    folder = route.root / f"bmodels-{_digest(*sources)}"
    with _lock(folder):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _write_sources(partial, weights)
            _build(route, partial)
            finished = folder.with_suffix(".finished")
            finished.mkdir(exist_ok=True)
            for name in (*_QUANTIZE, "lm_head"):
                (partial / f"{name}.bmodel").replace(finished / f"{name}.bmodel")
            finished.rename(folder)
            shutil.rmtree(partial)
    return folder


def _build(route: Route, folder: Path) -> None:
    """Compile every net and combine them, with the options of the vendor's script."""
    route.run(folder, "python", str(_GRAPHS), ".")
    for name, tokens in (("embedding", VENDOR_CONFIG.max_context), ("embedding_cache", 1)):
        _transform(route, folder, name, "embedding", "--input_shapes", f"[[1,{tokens}]]")
        _deploy(route, folder, name, "--quantize", "F16")
    _transform(route, folder, "lm_head", "lm_head")
    _deploy(route, folder, "lm_head", "--quantize", "F16")
    blocks = [f"{name}_{layer}" for layer in range(VENDOR_CONFIG.layers) for name in _KV_OPTIONS]
    for net in blocks:
        _transform(route, folder, net, net)
    for bits, quantize in _QUANTIZE.items():
        for net in blocks:
            _deploy(route, folder, net, *quantize, *_KV_OPTIONS[net.rpartition("_")[0]])
        files = [f"{net}.bmodel" for net in ("embedding_cache", "embedding", "lm_head", *blocks)]
        route.run(folder, "model_tool", "--combine", *files, "-o", f"{bits}.bmodel")


def _transform(route: Route, folder: Path, net: str, graph: str, *options: str) -> None:
    names = ["--model_name", net, "--model_def", f"{graph}.onnx", "--mlir", f"{net}.mlir"]
    route.run(folder, "model_transform.py", *names, *options)


def _deploy(route: Route, folder: Path, net: str, *options: str) -> None:
    names = ["--mlir", f"{net}.mlir", "--chip", "bm1684x", "--model", f"{net}.bmodel"]
    route.run(folder, "model_deploy.py", *names, *options)


def _write_sources(folder: Path, weights: Weights) -> None:
    config = VENDOR_CONFIG
    shape = {
        "heads": config.heads,
        "hidden_size": config.hidden_size,
        "context": config.max_context,
        "layers": config.layers,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
    }
    (folder / "shape.json").write_text(json.dumps(shape), "utf-8")
    np.savez(folder / "weights.npz", **weights)  # pyright: ignore[reportArgumentType] - no name is its parameter


def _on_grid(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to 16 levels a group, the outermost both taken: 4 and 8 bits then find the same grid again."""
    groups = matrix.reshape(len(matrix), -1, _GROUP)
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    scale = ((high - low) / 15).astype(np.float16).astype(np.float32)
    zero = np.round(-low / scale)
    levels = np.clip(np.round(groups / scale) + zero, 0, 15)
    np.put_along_axis(levels, groups.argmin(-1, keepdims=True), 0, -1)
    np.put_along_axis(levels, groups.argmax(-1, keepdims=True), 15, -1)
    return ((levels - zero) * scale).reshape(matrix.shape).astype(np.float32)


def _install(root: Path) -> None:
    """Make the environment: a venv of Python 3.10, the requirements, TPU-MLIR without its glibc."""
    shutil.rmtree(root, ignore_errors=True)
    wheel = download_wheel(COMPILER.wheel, root.parent)
    _run(_python_310(), "-m", "venv", str(root))
    pip = [str(root / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run(*pip, "--only-binary=:all:", *_REQUIREMENTS)
    _run(*pip, "--no-deps", str(wheel))
    wheel.unlink()
    packages = root / "lib" / "python3.10" / "site-packages"
    for name in _GLIBC:
        (packages / "tpu_mlir" / "lib" / "third_party" / name).unlink()
    (packages / "sitecustomize.py").write_text(_STAND_INS, "utf-8")
    (root / "whole").touch()


def _python_310() -> str:
    """Return an interpreter of Python 3.10, which may lie with pyenv instead of on PATH."""
    found = [shutil.which("python3.10"), *map(str, Path.home().glob(".pyenv/versions/3.10.*/bin/python3.10"))]
    for python in filter(None, found):
        # A shim of pyenv is on PATH whether or not it leads anywhere.
        if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
            return python
    raise RouteMissingError("the vendor's ONNX route needs Python 3.10; uv python install 3.10 brings one")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed: {done.stderr}"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep a second test run from making the same thing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join((*texts, sys.platform)).encode()).hexdigest()[:12]
