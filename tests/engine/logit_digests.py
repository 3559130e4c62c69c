"""Print a digest of the CPU engine's logits for each model of the tests, with this machine's fastest kernels.

Vector kernels give the same bits on all processors, so two machines print the same: ``scripts/test_arm``.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.cpu import CpuEngine
from models.random_model import SHAPES, random_weights


def digest_logits(shape: str, bits: Literal[4, 8], *, is_exact: bool) -> str:
    weights = random_weights(shape, bits)
    tokens = np.random.default_rng(1).integers(0, weights.config.vocabulary_size, 60).tolist()
    with CpuEngine(weights, is_exact=is_exact) as engine, engine.open_sequence() as sequence:
        logits = engine.forward([Chunk(sequence, tokens, len(tokens))])[0]
    return hashlib.sha256(logits.tobytes()).hexdigest()


def main() -> None:
    for shape in SHAPES:
        for bits in (4, 8):
            for is_exact in (False, True):
                digest = digest_logits(shape, bits, is_exact=is_exact)
                sys.stdout.write(f"{shape}, {bits} bits, {'exact' if is_exact else 'fast'}: {digest}\n")


if __name__ == "__main__":
    main()
