# Native kernels; see the headers of native/ for layouts and meaning. Names of kernels are those that
# kernel_names() lists; "" is the fastest of them.

from collections.abc import Sequence as Items

import numpy as np
from numpy.typing import NDArray

PACKED_LAYOUT: int
PART_ALIGNMENT: int

class ModelShape:
    def __init__(
        self,
        *,
        layers: int,
        hidden: int,
        intermediate: int,
        heads: int,
        kv_heads: int,
        head_size: int,
        vocabulary: int,
        context: int,
        norm_eps: float,
        rope_theta: float,
        alibi_slopes: Items[float],
        bits: int,
        head_bits: int,
    ) -> None: ...

class Sequence:
    def __init__(self, shape: ModelShape) -> None: ...
    @property
    def length(self) -> int: ...
    def truncate(self, length: int) -> None: ...
    def copy_prefix(self, source: Sequence, length: int) -> None: ...

class Model:
    def __init__(
        self,
        shape: ModelShape,
        threads: int,
        kernels: str,
        is_exact: bool,
        packed: NDArray[np.uint8] | None = None,
    ) -> None: ...
    @property
    def kernels(self) -> str: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def packed_bytes(self) -> int: ...
    @property
    def is_packed(self) -> bool: ...
    def packed_parts(self) -> list[NDArray[np.uint8]]: ...
    def pack(
        self,
        layer: int,
        name: str,
        qweight: NDArray[np.int32],
        qzeros: NDArray[np.int32],
        scales: NDArray[np.uint16],
        group_size: int,
    ) -> None: ...
    def set_norm(self, layer: int, name: str, weight: NDArray[np.float32]) -> None: ...
    def set_profile(self, is_on: bool) -> None: ...
    def profile(self) -> list[tuple[str, float, int, int]]: ...
    def set_embedding(self, embedding: NDArray[np.uint16]) -> None: ...
    def forward(
        self, sequences: list[Sequence], tokens: list[NDArray[np.int32]], logit_rows: list[int]
    ) -> NDArray[np.float32]: ...

def kernel_names() -> list[str]: ...
def quantize_activations(
    kernels: str, x: NDArray[np.float32], weight_bits: int, is_all_wide: bool = False
) -> tuple[NDArray[np.int16], NDArray[np.float32], NDArray[np.float32]]: ...
def matmul(
    kernels: str,
    qweight: NDArray[np.int32],
    qzeros: NDArray[np.int32],
    scales: NDArray[np.uint16],
    bits: int,
    group_size: int,
    x: NDArray[np.float32],
    is_exact: bool,
    is_all_wide: bool = False,
) -> NDArray[np.float32]: ...
def attend(
    kernels: str,
    queries: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    slopes: NDArray[np.float32],
    tile_tokens: int,
) -> NDArray[np.float32]: ...
def swiglu(kernels: str, gate: NDArray[np.float32], up: NDArray[np.float32]) -> NDArray[np.float32]: ...
def round_to_half(kernels: str, x: NDArray[np.float32]) -> NDArray[np.float32]: ...
def measure_read_bandwidth(threads: int) -> float: ...
def measure_multiply_peak(threads: int, bits: int, kernels: str = "") -> float: ...
def quantize_groups(
    weights: NDArray[np.float32],
    bits: int,
    group_size: int,
    importance: NDArray[np.float32] | None = None,
    kernels: str = "",
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint8]]: ...
def round_with_feedback(
    values: NDArray[np.float32],
    targets: NDArray[np.float32],
    feedback: NDArray[np.float32],
    scales: NDArray[np.float32],
    zeros: NDArray[np.uint8],
    group_of: NDArray[np.int32],
    bits: int,
    kernels: str = "",
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]: ...
