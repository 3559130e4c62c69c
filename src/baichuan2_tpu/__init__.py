"""Run Baichuan2 chat models on SOPHON BM1684X TPUs and on any CPU."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("baichuan2-tpu")
