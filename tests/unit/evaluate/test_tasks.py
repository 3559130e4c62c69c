"""Tasks run through the real lm-evaluation-harness, without the network, and give the numbers they should."""

import json
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baichuan2_tpu.errors import BackendError, RequestError
from baichuan2_tpu.evaluate import TaskScore
from baichuan2_tpu.evaluate.tasks import TaskPlan, load_tasks, task_scores
from doubles.fakes import FakeEngine
from doubles.recall import ASSISTANT, USER, recall_subject

KNOWN = [
    # Both choices are of one length: where nothing is known, the first one wins.
    ("France", ["Paris", "Tours"], 0),
    ("England", ["Dorset", "London"], 1),
    ("Italy", ["Bari", "Rome"], 1),
    ("Japan", ["Kyoto", "Tokyo"], 1),
]
LINES = [f"The capital of {country} is {cities[answer]}." for country, cities, answer in KNOWN]
CHOICE: dict[str, Any] = {
    "task": "capitals",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "capitals.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "The capital of {{country}} is",
    "doc_to_choice": "{{cities}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
SAY = {key: value for key, value in CHOICE.items() if key != "doc_to_choice"} | {
    "task": "say_capital",
    "output_type": "generate_until",
    "doc_to_target": " {{cities[answer]}}.",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
ROLL = CHOICE | {
    "task": "lines",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "The capital of {{country}} is {{cities[answer]}}.",
    "metric_list": [{"metric": "byte_perplexity"}],
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="run: pip install '.[eval]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)  # else data out of reach is asked for 5 times
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def refuse(*where: object, **_: object) -> None:
        raise AssertionError(f"a task asked the network for {where}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with data; the tests run elsewhere, so names of data are from the task file's folder."""
    lines = [
        json.dumps({"country": country, "cities": cities, "answer": answer})
        for country, cities, answer in KNOWN
    ]
    (tmp_path / "capitals.jsonl").write_text("\n".join(lines))
    return tmp_path


def write(folder: Path, task: Mapping[str, object]) -> Path:
    """Write a task file; JSON is YAML."""
    path = folder / f"{task['task']}.yaml"
    path.write_text(json.dumps(task))
    return path


def run(
    folder: Path, *tasks: Mapping[str, object], lines: list[str] | None = None, **plan: Any
) -> list[TaskScore]:
    said: list[str] = []
    files = tuple(write(folder, task) for task in tasks)
    suite = load_tasks(TaskPlan(files=files, **plan), said.append)
    return list(suite.run(recall_subject(*(LINES if lines is None else lines)), said.append))


def test_choices_are_scored_and_counted(folder: Path) -> None:
    first, second = run(folder, CHOICE, lines=LINES[:3])
    assert (first.task, first.metric, first.questions) == ("capitals", "acc", 4)
    assert (second.metric, second.value) == ("acc_norm", 0.75)  # choices of one length
    assert first.value == 0.75
    assert first.values is not None
    assert first.values.tolist() == [1, 1, 1, 0]


def test_answers_are_generated_and_matched(folder: Path) -> None:
    (found,) = run(folder, SAY, lines=LINES[1:])
    assert (found.task, found.metric, found.value) == ("say_capital", "exact_match", 0.75)


def test_documents_are_scored_whole(folder: Path) -> None:
    (found,) = run(folder, ROLL)
    assert found.metric == "byte_perplexity"
    # The letter that tells lines apart is one of four, at first; all others are certain.
    letters = sum(len(line) for line in LINES)
    assert found.value == pytest.approx(4 ** (4 / letters), rel=0.05)
    assert found.values is None
    assert found.interval is None


def test_a_limit_takes_the_first_questions(folder: Path) -> None:
    found, _ = run(folder, CHOICE, limit=2)
    assert found.questions == 2


def test_examples_stand_before_the_question(folder: Path) -> None:
    # A model that knows the bare question by heart is lost behind an example.
    assert run(folder, CHOICE, lines=[])[0].value == 0.25
    with_examples = CHOICE | {"fewshot_split": "test"}
    assert run(folder, with_examples, few_shot=1)[0].value == 0.25
    assert run(folder, with_examples, few_shot=0)[0].value == 1.0


def test_a_chat_asks_in_the_users_role(folder: Path) -> None:
    subject = recall_subject(*[line.replace(" is ", " is") for line in LINES])
    suite = load_tasks(TaskPlan(files=(write(folder, CHOICE),), is_chat=True), lambda _: None)
    found, _ = suite.run(subject, lambda _: None)
    assert isinstance(subject.engine, FakeEngine)
    # User, question, assistant, and the choice without a space, which the role mark stands for.
    assert found.value == 1.0
    assert {USER, ASSISTANT} < {token for ids in subject.engine.fed for token in ids}


def test_two_models_are_asked_the_same_questions(folder: Path) -> None:
    suite = load_tasks(TaskPlan(files=(write(folder, CHOICE),)), lambda _: None)
    knowing, _ = suite.run(recall_subject(*LINES), lambda _: None)
    guessing, _ = suite.run(recall_subject(), lambda _: None)
    assert (knowing.value, guessing.value) == (1.0, 0.25)
    difference = knowing.difference_interval(guessing)
    assert difference is not None
    assert difference.low < 0.75 <= difference.high


def test_nothing_reaches_standard_output_or_error(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The harness asked git for the version of a folder without a repository, and git complained.
    monkeypatch.chdir(folder)
    run(folder, CHOICE, SAY)
    assert capfd.readouterr() == ("", "")


def test_contexts_that_were_cut_are_told(folder: Path) -> None:
    said: list[str] = []
    suite = load_tasks(TaskPlan(files=(write(folder, CHOICE),)), said.append)
    suite.run(recall_subject(*LINES, max_context=20), said.append)
    assert said[-1] == "8 contexts were cut at their beginning to fit recall"


def test_float_weights_do_not_answer(folder: Path) -> None:
    suite = load_tasks(TaskPlan(files=(write(folder, SAY),)), lambda _: None)
    with pytest.raises(RequestError, match="recall is scored as float weights, which write no answers"):
        suite.run(replace(recall_subject(), engine=None), lambda _: None)


def test_a_fault_of_the_engine_stays_one(folder: Path) -> None:
    subject = recall_subject()
    assert isinstance(subject.engine, FakeEngine)
    subject.engine.fail_after = 1
    suite = load_tasks(TaskPlan(files=(write(folder, CHOICE),)), lambda _: None)
    with pytest.raises(BackendError, match="the engine was told to fail"):
        suite.run(subject, lambda _: None)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"dataset_kwargs": {"data_files": {"test": "absent.jsonl"}}},
            r"task file .*capitals.yaml cannot be loaded: FileNotFoundError: .*absent.jsonl",
        ),
        ({"output_type": "guess"}, r"task file .*capitals.yaml cannot be loaded: .*guess"),
        (
            {"metric_list": [{"metric": "frobnicate", "aggregation": "mean", "higher_is_better": True}]},
            "asks for the metric 'frobnicate', which would be downloaded as code",
        ),
        (
            {"metric_list": [{"metric": "acc", "hf_evaluate": True}]},
            "asks for the metric 'acc', which would be downloaded as code",
        ),
        ({"dataset_path": "someone/capitals", "dataset_kwargs": {}}, "HF_ENDPOINT"),
    ],
)
def test_a_task_that_cannot_be_run_is_one_line(
    folder: Path, change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(RequestError, match=complaint) as raised:
        run(folder, CHOICE | change)
    assert "\n" not in str(raised.value)
    assert "evaluate" not in sys.modules or sys.modules["evaluate"] is not None


def test_data_that_is_a_script_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found\ncapitals.py")

    monkeypatch.setattr("lm_eval.tasks.TaskManager.load", load)
    with pytest.raises(
        RequestError, match=r"found capitals\.py; its data comes as a script, which is not run"
    ):
        run(folder, CHOICE)


def test_a_task_file_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"there is no task file .*absent\.yaml; name a YAML file"):
        load_tasks(TaskPlan(files=(folder / "absent.yaml",)), lambda _: None)


def test_the_missing_package_is_named_with_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"not installed; run in the clone: pip install '\.\[eval\]'"):
        load_tasks(TaskPlan(names=("mmlu",)), lambda _: None)


def test_a_version_that_runs_scripts_of_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.6.0")
    with pytest.raises(RequestError, match=r"datasets 3.6.0 can run code .*; run: pip install 'datasets>=4'"):
        load_tasks(TaskPlan(names=("mmlu",)), lambda _: None)


def test_a_group_has_the_questions_of_all_its_tasks() -> None:
    def sample(place: int, value: float) -> dict[str, Any]:
        return {"doc_id": place, "filter": "none", "acc": value}

    found = {
        "results": {
            "all": {"alias": "all", "acc,none": 0.75},
            "a": {"acc,none": 1.0, "acc_stderr,none": "N/A"},
        }
        | {"b": {"acc,none": 0.5, "name": "b"}},
        "group_subtasks": {"all": ["inner"], "inner": ["a", "b"]},
        "n-samples": {"a": {"effective": 2}, "b": {"effective": 2}},
        "samples": {"a": [sample(0, 1), sample(1, 1)], "b": [sample(1, 0), sample(0, 1)]},
    }
    rows = task_scores(found)
    assert [(one.task, one.value, one.questions) for one in rows] == [
        ("all", 0.75, 4),
        ("a", 1.0, 2),
        ("b", 0.5, 2),
    ]
    assert rows[0].values is not None
    assert rows[0].values.tolist() == [1, 1, 1, 0]


def test_a_mean_that_weighs_tasks_alike_has_no_interval() -> None:
    found = {
        "results": {"all": {"acc,none": 0.75}},
        "group_subtasks": {"all": ["a", "b"]},
        "n-samples": {"a": {"effective": 1}, "b": {"effective": 2}},
        "samples": {
            "a": [{"doc_id": 0, "filter": "none", "acc": 1.0}],
            "b": [{"doc_id": 0, "filter": "none", "acc": 1.0}, {"doc_id": 1, "filter": "none", "acc": 0.0}],
        },
    }
    (row,) = task_scores(found)
    assert (row.value, row.questions, row.values) == (0.75, 3, None)
