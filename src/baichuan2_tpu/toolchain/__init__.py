"""TPU-MLIR on this machine: install it, find it, and say exactly what it lacks.

Not here: what is compiled with it (``compile``), what runs on its simulator (``engine``).
"""

from baichuan2_tpu.toolchain.install import install_simulator, install_toolchain, remove
from baichuan2_tpu.toolchain.locate import Toolchain, find_simulator, find_toolchain

__all__ = [
    "Toolchain",
    "find_simulator",
    "find_toolchain",
    "install_simulator",
    "install_toolchain",
    "remove",
]
