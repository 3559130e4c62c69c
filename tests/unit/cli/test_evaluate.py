"""``baichuan2 evaluate`` prints what was scored and how, and refuses what cannot be compared."""

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.cli import evaluate_models
from baichuan2_tpu.cli.evaluate_models import EngineCandidate, find_reference
from baichuan2_tpu.model import EngineSettings
from models.fake_bundle import write_fake_bundle
from models.tiny_checkpoint import restored_weights, rope_config, write_config, write_official
from models.tiny_tokenizer import write_bpe, write_sentencepiece
from running.cli_command import Run

TEXT = "请使用C++写一段冒泡排序算法。The capital of France is Paris.\n" * 12
SUMS: dict[str, object] = {
    "task": "sums",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": ["2", "3"],
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}],
}
CUT = ("--window", 64, "--stride", 32)


def write_sums(folder: Path, monkeypatch: pytest.MonkeyPatch, **change: object) -> Path:
    """Write a task of choices with its data; what the harness keeps of it goes beside them."""
    datasets = pytest.importorskip("datasets", reason="run: pip install '.[eval]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "hf")
    lines = [{"q": "1 + 1 =", "answer": 0}, {"q": "1 + 2 =", "answer": 1}]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "sums.yaml").write_text(json.dumps(SUMS | change))
    return folder / "sums.yaml"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text(TEXT, "utf-8")
    return path


def test_a_text_is_scored_and_the_report_says_how(run: Run, model: Path, text: Path) -> None:
    done = run("evaluate", model, "--text", text, "--tokens", 130, *CUT)
    assert (done.code, done.err) == (0, "")
    name, tokens, windows, blank, header, rule, row = done.out.splitlines()
    assert name == f"text       {text}"
    assert tokens.startswith(
        "tokens     130 by SentencePieceTokenizer of 400 ids, without a token in front; sha256 "
    )
    assert windows == "windows    4 of 64 tokens, stride 32; 129 tokens are scored"
    assert (blank, rule) == ("", "|---|---|---|---|---|")
    assert header == "| model | engine | weights | perplexity | 95 % interval |"
    assert row.startswith(f"| {model} | cpu | 4 bits | ")


def test_json_is_one_object_with_the_same_numbers(run: Run, model: Path, text: Path) -> None:
    words = ("evaluate", model, "--text", text, *CUT)
    plain = run(*words).out.splitlines()[-1]
    done = run(*words, "--json")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    facts = json.loads(done.out)
    assert (facts["engine"], facts["text"]["window"], facts["text"]["stride"]) == ("cpu", 64, 32)
    assert f"| {facts['perplexity']:.4f} |" in plain
    assert facts["perplexity_interval"][0] < facts["perplexity"] < facts["perplexity_interval"][1]


def test_standard_input_is_a_text_too(
    run: Run, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_file = run("evaluate", model, "--text", text, "--json")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    piped = json.loads(run("evaluate", model, "--text", "-", "--json").out)
    assert piped["text"]["name"] == "standard input"
    assert piped["perplexity"] == json.loads(from_file.out)["perplexity"]
    assert piped["text"]["window"] == 256  # the model's whole context, which is below the usual window


def test_a_quantised_model_is_compared_with_its_float_source(
    run: Run, model: Path, float_model: Path, text: Path
) -> None:
    done = run("evaluate", model, "--text", text, *CUT, "--against", float_model, "--json")
    assert (done.code, done.err) == (0, "")
    facts = json.loads(done.out)
    assert (facts["against"]["engine"], facts["against"]["weights"]) == ("numpy", "float32")
    assert facts["text"]["tokens_sha256"] == facts["against"]["text"]["tokens_sha256"]
    comparison = facts["comparison"]
    low, high = comparison["rise_percent_interval"]
    assert low <= comparison["rise_percent"] <= high
    assert abs(comparison["rise_percent"]) < 10
    assert 0.5 < comparison["same_first_choice"] <= 1


@pytest.mark.parametrize("tokens", [100, 150])
def test_the_reference_has_the_windows_of_the_model(
    run: Run, model: Path, float_model: Path, text: Path, tokens: int
) -> None:
    # Each took its own context for a window: one window of 100 tokens was compared with two of 64.
    words = ("--text", text, "--tokens", tokens, "--context", 64, "--against", float_model, "--json")
    done = run("evaluate", model, *words)
    assert (done.code, done.err) == (0, "")
    facts = json.loads(done.out)
    assert facts["text"]["window"] == 64
    assert {**facts["against"]["text"], "tokenizer": None} == {**facts["text"], "tokenizer": None}
    assert abs(facts["comparison"]["rise_percent"]) < 10


def test_a_reference_with_a_shorter_context_says_which_window_fits(
    run: Run, model: Path, text: Path, tmp_path: Path
) -> None:
    short = tmp_path / "Short"
    write_official(short, rope_config(vocabulary_size=400, max_context=64))
    write_sentencepiece(short)
    done = run("evaluate", model, "--text", text, "--against", short)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"error: a window of 256 tokens does not fit {short}, whose context is 64; use --window 64 or less\n"
    )
    assert run("evaluate", model, "--text", text, "--against", short, "--window", 64).code == 0


def test_exact_activations_are_those_of_float_weights(
    run: Run, model: Path, text: Path, tmp_path: Path
) -> None:
    # The float weights are the quantised model's own, so what is left is the rounding of activations.
    checkpoint = QuantizedCheckpoint(model)
    write_config(tmp_path, replace(checkpoint.config, quantization=None, is_head_normalized=False))
    weights = {name: tensor.astype(np.float32) for name, tensor in restored_weights(checkpoint).items()}
    save_file(weights, tmp_path / "model.safetensors")
    shutil.copy(model / "tokenizer.model", tmp_path)
    words = ("evaluate", model, "--text", text, *CUT, "--against", tmp_path, "--json")
    fast, exact = (json.loads(run(*words, *more).out) for more in ((), ("--exact",)))
    assert (fast["engine"], exact["engine"]) == ("cpu", "cpu, exact")
    rises = [abs(one["comparison"]["rise_percent"]) for one in (fast, exact)]
    assert rises[1] < 0.03 < rises[0], rises  # measured: 0.24 % and 0.006 %


def test_a_float_reference_can_run_quantised_when_asked(
    run: Run, model: Path, float_model: Path, text: Path
) -> None:
    words = ("--against", float_model, "--against-engine", "cpu", "--json")
    done = run("evaluate", model, "--text", text, *CUT, *words)
    assert done.err.startswith(f"quantising {float_model} to 4 bits (once, into ")
    assert json.loads(done.out)["comparison"]["rise_percent"] == 0


@pytest.mark.usefixtures("_nothing_is_scored")
def test_another_tokenizer_is_refused(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "Other"
    write_official(other, rope_config(vocabulary_size=400))
    (other / "tokenizer.model").unlink()
    write_bpe(other)
    done = run("evaluate", model, "--text", text, *CUT, "--against", other)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {other} has another tokenizer: {text} differs from token ")
    assert done.err.count("\n") == 1


@pytest.fixture
def _nothing_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        evaluate_models, "open_model", lambda *_: pytest.fail("opened before both were checked")
    )


@pytest.mark.usefixtures("_nothing_is_scored")
def test_a_reference_that_is_not_there_is_refused_before_anything_is_scored(
    run: Run, model: Path, text: Path
) -> None:
    done = run("evaluate", model, "--text", text, *CUT, "--against", "nowhere")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(
        "error: 'nowhere' is neither a path that exists nor a known model; give a checkpoint"
    )


@pytest.mark.usefixtures("_nothing_is_scored")
def test_a_reference_of_another_kind_is_refused_before_anything_is_scored(
    run: Run, model: Path, text: Path
) -> None:
    done = run("evaluate", model, "--text", text, *CUT, "--against", model, "--against-engine", "float")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {model}: is quantised already; name the float checkpoint")


@pytest.mark.usefixtures("_nothing_is_scored", "text")
@pytest.mark.parametrize("option", ["--text", "--task-file"])
def test_a_reference_that_gives_tokens_alone_is_refused_before_anything_is_scored(
    option: str, run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    replace(write_fake_bundle(bundle, model), head_output="token").write(bundle)
    asked = tmp_path / "notes.txt" if option == "--text" else write_sums(tmp_path, monkeypatch)
    done = run("evaluate", model, option, asked, "--against", bundle)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {bundle} was compiled with --head-output token, and a score needs ")


def test_the_vendors_models_can_be_compared_with(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    # They were refused: "is compiled already; give a checkpoint".
    shutil.copy(model / "tokenizer.model", tmp_path)
    (tmp_path / "baichuan2-7b_int8_1dev.bmodel").touch()
    monkeypatch.setattr("baichuan2_tpu.fetch.vendor.fetch_vendor_model", lambda *_, **__: tmp_path)
    reference = find_reference("baichuan2-7b-int8-bmodel", EngineSettings(threads=2))
    assert isinstance(reference, EngineCandidate)
    assert (reference.files.located.path, reference.running.threads) == (tmp_path, None)


def test_a_reference_is_fetched_with_progress(monkeypatch: pytest.MonkeyPatch, float_model: Path) -> None:
    seen: list[object] = []

    def fetch(name: str, settings: object, *, notice: object, progress: object) -> Path:
        seen.append(progress)
        return float_model

    monkeypatch.setattr("baichuan2_tpu.fetch.models.fetch_model", fetch)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert find_reference("baichuan2-7b-chat", EngineSettings()).is_float
    assert callable(seen[0])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--against-engine", "float"), "--against-engine needs --against"),
        (("--limit", 3), "--limit, --few-shot and --chat need --task or --task-file"),
        (("--chat",), "--limit, --few-shot and --chat need --task or --task-file"),
        (("--task", "mmlu", "--stride", 5), "--tokens, --window and --stride need --text beside tasks"),
    ],
)
def test_options_of_what_is_not_asked_for_are_wrong_usage(
    run: Run, words: tuple[str, ...], complaint: str
) -> None:
    done = run("evaluate", "no-such-model", *words)
    expected = f"error: Invalid value: {complaint}; see baichuan2 evaluate --help\n"
    assert (done.code, done.out, done.err) == (2, "", expected)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ("--window", 257),
            "a window of 257 tokens does not fit {model}, whose context is 256; use --window 256",
        ),
        (("--window", 8, "--stride", 9), "the stride is 9 tokens; 1 to 8, the window, are allowed"),
        (("--tokens", 10**6), "tokens, 1000000 were asked for; lower --tokens"),
    ],
)
def test_a_length_that_cannot_be_is_named(
    run: Run, model: Path, text: Path, words: tuple[object, ...], complaint: str
) -> None:
    done = run("evaluate", model, "--text", text, *words)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert complaint.format(model=model) in done.err


def test_an_empty_text_is_refused(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    done = run("evaluate", model, "--text", tmp_path / "empty.txt")
    assert (done.code, done.out) == (1, "")
    assert done.err.endswith("empty.txt has 0 tokens; 2 or more are needed\n")


def test_float_weights_are_no_model_of_their_own(run: Run, float_model: Path, text: Path) -> None:
    done = run("evaluate", float_model, "--text", text, "--engine", "float")
    assert done.code == 2
    assert done.err.startswith("error: Invalid value for '--engine'")


def test_tasks_are_shown_beside_the_reference(
    run: Run, model: Path, float_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = write_sums(tmp_path, monkeypatch)
    done = run("evaluate", model, "--task-file", sums, "--against", float_model)
    assert (done.code, done.err) == (0, f"asking {model}\nasking {float_model}\n")
    header, rule, row = done.out.splitlines()
    columns = f"{model} | 95 % interval | {float_model} | difference | 95 % interval"
    assert header == f"| task | metric | questions | {columns} |"
    assert rule.count("-") == 3 * 8
    assert row.startswith("| sums | acc | 2 | ")


@pytest.mark.usefixtures("_nothing_is_scored")
def test_float_weights_are_refused_for_tasks_of_text_before_anything_is_scored(
    run: Run, model: Path, float_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    sums = write_sums(
        tmp_path,
        monkeypatch,
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{answer}}",
        metric_list=[metric],
    )
    done = run("evaluate", model, "--task-file", sums, "--against", float_model)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {float_model} is scored as float weights, which write no answers; ")


def test_an_unknown_task_is_one_line(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The whole list of tasks takes many seconds to read.
    manager = type("Manager", (), {"__init__": lambda self, include_defaults: None, "task_index": {}})
    pytest.importorskip("lm_eval", reason="run: pip install '.[eval]'")
    monkeypatch.setattr("lm_eval.tasks.TaskManager", manager)
    done = run("evaluate", model, "--task", "cval")
    assert (done.code, done.out) == (1, "")
    first, second = done.err.splitlines()
    assert first == "reading the list of tasks"
    assert second.startswith("error: lm-evaluation-harness 0.4.")
    assert second.endswith(
        "has no task 'cval'; 'lm-eval ls tasks' lists them, and --task-file takes one of your own"
    )
