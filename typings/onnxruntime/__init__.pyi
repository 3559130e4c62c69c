# The part of onnxruntime 1.32 that the benchmarks use.

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__version__: str

class SessionOptions:
    intra_op_num_threads: int

class InferenceSession:
    def __init__(self, model: bytes, sess_options: SessionOptions, *, providers: Sequence[str]) -> None: ...
    def run(
        self, output_names: None, inputs: Mapping[str, NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]: ...
