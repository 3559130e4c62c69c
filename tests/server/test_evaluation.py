"""lm-evaluation-harness scores a served model, and finds what the engine itself would say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from baichuan2_tpu.generate.sampling import logprobs
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from baichuan2_tpu.model import load

QUESTIONS: list[dict[str, Any]] = [
    {"question": "The capital of France is", "choices": ["Paris.", "a cold river", "two"], "answer": 0},
    {"question": "北京是", "choices": ["中国的首都", "一条河"], "answer": 0},
    {"question": "one two three", "choices": ["four", "<reserved_106>", "é"], "answer": 0},
]

TASK = """\
task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}, train: {questions}}}}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def task_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task of multiple choice beside its questions; nothing of it is on the network."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(f"{json.dumps(question)}\n" for question in QUESTIONS))
    (tmp_path / "tiny.yaml").write_text(TASK.format(questions=questions))
    return tmp_path


def evaluate(url: str, task_folder: Path, **arguments: object) -> dict[str, Any]:
    """Run the task as ``lm-eval run --model local-completions`` does."""
    model_args = {"base_url": f"{url}/v1/completions", "model": "Tiny-Chat", "max_retries": 1, **arguments}
    # The stubs have only what the package itself uses.
    manager = TaskManager(include_path=str(task_folder), include_defaults=False)  # pyright: ignore[reportCallIssue]
    results = simple_evaluate(
        "local-completions",
        model_args=model_args,  # pyright: ignore[reportCallIssue]
        tasks=["tiny"],
        task_manager=manager,
        bootstrap_iters=0,
    )
    assert results is not None
    return results


def score(model_directory: Path, context: str, choice: str) -> tuple[float, bool]:
    """Return the log probability of a choice behind its context, and whether it is the greedy answer."""
    with load(model_directory, threads=1) as model, TrackedSequence(model.engine) as sequence:
        ids = model.tokens(f"{context} {choice}")
        start = len(model.tokens(context))
        rows = sequence.feed(ids, len(ids))[start - 1 : -1, : model.tokenizer.vocabulary_size]
    scores = [logprobs(row, token_id, 0)[0].logprob for row, token_id in zip(rows, ids[start:], strict=True)]
    return sum(scores), bool(np.array_equal(rows.argmax(axis=1), ids[start:]))


@pytest.mark.parametrize("arguments", [{}, {"batch_size": 3}, {"num_concurrent": 4}], ids=str)
def test_the_harness_finds_the_scores_of_the_engine(
    url: str, model_directory: Path, task_folder: Path, arguments: dict[str, int]
) -> None:
    results = evaluate(url, task_folder, **arguments)
    samples = sorted(results["samples"]["tiny"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(QUESTIONS)
    right = 0
    for question, sample in zip(QUESTIONS, samples, strict=True):
        scores = [score(model_directory, question["question"], choice) for choice in question["choices"]]
        assert [response[0][1] for response in sample["resps"]] == [is_greedy for _, is_greedy in scores]
        logprobs = [logprob for logprob, _ in scores]
        assert [response[0][0] for response in sample["resps"]] == pytest.approx(logprobs, abs=1e-4)
        right += int(np.argmax(logprobs)) == question["answer"]
    assert results["results"]["tiny"]["acc,none"] == pytest.approx(right / len(QUESTIONS))
