"""Names of models that can be fetched, and where each comes from.

A user sees the sizes before the network is used. Not here: fetching (``models``, ``vendor``,
``wheels``), how a model is quantised (``resolve``).
Source: the repositories of baichuan-inc on Hugging Face and ModelScope, which have the same names;
sample/Baichuan2/scripts/download.sh of sophgo/sophon-demo. 7.506e9 and 13.896e9 parameters of 2 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["HUB_MODELS", "VENDOR_MODELS", "HubModel", "VendorModel"]


@dataclass(frozen=True, slots=True)
class HubModel:
    """A checkpoint on both hubs. Units: ``about_bytes`` is what its weights take, without the small files."""

    description: str
    repository: str
    shape: str
    """Its dimensions, by their name in ``shapes``."""
    about_bytes: int


@dataclass(frozen=True, slots=True)
class VendorModel:
    """A bmodel that the vendor has compiled. Units: ``room_bytes`` is disk space that is surely enough."""

    description: str
    bmodel: str
    room_bytes: int


HUB_MODELS: Mapping[str, HubModel] = MappingProxyType(
    {
        f"baichuan2-{size.lower()}-{kind.lower()}": HubModel(
            f"Baichuan2-{size}-{kind}, float weights",
            f"baichuan-inc/Baichuan2-{size}-{kind}",
            f"baichuan2-{size.lower()}",
            about_bytes,
        )
        for size, about_bytes in (("7B", 15_012_000_000), ("13B", 27_793_000_000))
        for kind in ("Chat", "Base")
    }
)

# The vendor publishes no sizes: a layer's weights at that width, embedding and head at 16 bits, and a margin.
VENDOR_MODELS: Mapping[str, VendorModel] = MappingProxyType(
    {
        "baichuan2-7b-int8-bmodel": VendorModel(
            "Baichuan2-7B-Chat compiled by the vendor, INT8, context 512",
            "baichuan2-7b_int8_1dev.bmodel",
            room_bytes=9_500_000_000,
        ),
        "baichuan2-7b-int4-bmodel": VendorModel(
            "Baichuan2-7B-Chat compiled by the vendor, INT4, context 512",
            "baichuan2-7b_int4_1dev.bmodel",
            room_bytes=6_500_000_000,
        ),
    }
)
