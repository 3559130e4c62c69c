"""Several answers at once: one step for all, with its time and what the device did in it."""

import json

import pytest

from baichuan2_tpu.bench import BundleBenchSettings, clients_table, run_bundle_bench
from baichuan2_tpu.bench.clients import check_clients, measure_clients
from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.engine.compiled.engine import BmodelEngine
from baichuan2_tpu.engine.compiled.net_plan import plan_nets
from baichuan2_tpu.errors import ContextLengthError, RequestError
from doubles.fakes import HistoryEngine
from doubles.numpy_device import NumpyDevice, rounded
from models.bundle_manifest import bundle_manifest
from models.random_model import float_weights, random_weights

MODEL = random_weights("grouped", 8)
FLOATS = float_weights(MODEL)


def open_compiled() -> BmodelEngine:
    device = NumpyDevice(MODEL.config, FLOATS, context=96, stages=(1, 8, 32), head_rows=(1, 8))
    embedding = rounded(FLOATS["model.embed_tokens.weight"], device.dtype)
    return BmodelEngine(device, plan_nets(device.nets), MODEL.config, embedding=embedding, context=64)


def test_a_step_of_all_clients_is_as_many_launches_as_one_of_a_single_client() -> None:
    with open_compiled() as engine:
        alone, together = measure_clients(engine, (1, 8), 3, lambda _: None)
        assert engine.row_use.used == 0
    launches, waits, copies, uploaded = together.counts_per_step
    assert (alone.clients, together.clients) == (1, 8)
    assert launches == alone.counts_per_step[0] == MODEL.config.layers + 1
    assert copies == 0
    assert waits == 1
    assert uploaded is not None
    assert uploaded > (alone.counts_per_step[3] or 0)


def test_all_clients_get_one_token_per_step() -> None:
    engine = HistoryEngine(320)
    (row,) = measure_clients(engine, (4,), 2, lambda _: None)
    assert [len(chunk) for chunk in engine.fed] == [4] * 4 + [1] * 8
    assert engine.open_sequences == 0
    assert row.tok_per_s == 4 / row.step_s.median


def test_an_engine_without_a_device_leaves_the_counts_blank() -> None:
    (row,) = measure_clients(HistoryEngine(320), (2,), 1, lambda _: None)
    assert row.to_json()["launches_per_step"] is None
    assert clients_table([row])[-1].endswith("|  |  |  |  |")


def test_the_report_has_a_row_for_each_number_of_clients() -> None:
    settings = BundleBenchSettings(prompt=(3, 1), lengths=(), decode_tokens=2, clients=(1, 3))
    steps: list[str] = []
    report = run_bundle_bench(
        lambda: HistoryEngine(320), settings, model="tiny", manifest=bundle_manifest(), on_step=steps.append
    )
    values = json.loads(json.dumps(report.to_json()))["clients"]
    assert [(row["clients"], row["steps"]) for row in values] == [(1, 2), (3, 2)]
    assert all(0 < row["step_ms_low"] <= row["step_ms"] <= row["step_ms_high"] for row in values)
    assert steps[-2:] == ["1 client at once", "3 clients at once"]


@pytest.mark.parametrize("clients", [0, 14])
def test_more_clients_than_the_rows_hold_are_refused(clients: int) -> None:
    with (
        open_compiled() as engine,
        pytest.raises(RequestError, match=f"{clients} clients .* 1 to 13 "),
    ):
        check_clients(engine, (1, clients), 3)


def test_steps_beyond_the_context_are_refused() -> None:
    engine: Engine = HistoryEngine(320, max_context=64)
    with pytest.raises(ContextLengthError, match="65 tokens do not fit"):
        check_clients(engine, (1,), 61)
