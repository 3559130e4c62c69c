"""Measure how fast a model answers: on this machine's processor, or as a bundle on whatever runs it.

Not here: printing (``cli``), what the compiler's model of a chip says (``estimate``).
"""

from baichuan2_tpu.bench.clients import ClientsMeasurement, clients_table
from baichuan2_tpu.bench.compiled import BundleBenchSettings, BundleReport, prompt_lengths, run_bundle_bench
from baichuan2_tpu.bench.cpu import (
    SHAPES,
    BenchReport,
    BenchSettings,
    Ceilings,
    RandomWeights,
    Run,
    Traffic,
    available_threads,
    measure_ceilings,
    prefill_macs,
    run_bench,
    shape_config,
)
from baichuan2_tpu.bench.profile import ProfileReport, ProfileSettings, run_profile
from baichuan2_tpu.bench.table import PerformanceRow, performance_table
from baichuan2_tpu.bench.timing import (
    VENDOR_PROMPT,
    VENDOR_PROMPT_IDS,
    Measurement,
    peak_rss_bytes,
    vendor_prompt_ids,
)

__all__ = [
    "SHAPES",
    "VENDOR_PROMPT",
    "VENDOR_PROMPT_IDS",
    "BenchReport",
    "BenchSettings",
    "BundleBenchSettings",
    "BundleReport",
    "Ceilings",
    "ClientsMeasurement",
    "Measurement",
    "PerformanceRow",
    "ProfileReport",
    "ProfileSettings",
    "RandomWeights",
    "Run",
    "Traffic",
    "available_threads",
    "clients_table",
    "measure_ceilings",
    "peak_rss_bytes",
    "performance_table",
    "prefill_macs",
    "prompt_lengths",
    "run_bench",
    "run_bundle_bench",
    "run_profile",
    "shape_config",
    "vendor_prompt_ids",
]
