"""The report says what was scored and how, and a reader and a program get the same numbers."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.evaluate import Evaluation, Perplexity, Report, ScoredText, TaskScore

TEXT = ScoredText("notes.txt", tuple(range(21)), 8, 8)


def perplexity(*losses: float) -> Perplexity:
    counts = np.array([7, 7, 5], np.int64)
    return Perplexity(np.array(losses, np.float64) * counts, counts, np.zeros(19, np.int64))


def score(task: str, *values: float) -> TaskScore:
    return TaskScore(task, "acc", float(np.mean(values)), len(values), np.array(values))


def evaluation(model: str, found: Perplexity | None = None, *tasks: TaskScore) -> Evaluation:
    return Evaluation(
        model=model,
        engine="cpu",
        weights="4 bits",
        tokenizer="ByteTokenizer of 257 ids",
        text=TEXT if found else None,
        perplexity=found,
        tasks=tasks,
    )


LN2 = math.log(2)
OWN = evaluation("w4", perplexity(LN2, LN2, LN2))
HALF = evaluation("w8", perplexity(0, 0, 0))


def test_lines_say_how_the_text_was_tokenised_and_cut() -> None:
    lines = Report(OWN).lines()
    assert lines[:4] == [
        "text       notes.txt",
        f"tokens     21 by ByteTokenizer of 257 ids, without a token in front; sha256 {TEXT.sha256}",
        "windows    3 of 8 tokens, stride 8; 19 tokens are scored",
        "",
    ]
    assert lines[4:] == [
        "| model | engine | weights | perplexity | 95 % interval |",
        "|---|---|---|---|---|",
        "| w4 | cpu | 4 bits | 2.0000 | 2.00 to 2.00 |",
    ]


def test_a_comparison_has_the_rise_with_its_interval() -> None:
    *_, own, other = Report(OWN, HALF).lines()
    assert own == (
        "| w4 | cpu | 4 bits | 2.0000 | 2.00 to 2.00 | +100.000 % | +100.000 to +100.000 % | 100.00% |"
    )
    assert other == "| w8 | cpu | 4 bits | 1.0000 | 1.00 to 1.00 |  |  |  |"


def test_json_has_the_same_numbers() -> None:
    facts = json.loads(json.dumps(Report(OWN, HALF).to_json()))
    assert facts["perplexity"] == pytest.approx(2)
    assert facts["text"] == {
        "name": "notes.txt",
        "tokenizer": "ByteTokenizer of 257 ids",
        "tokens": 21,
        "tokens_sha256": TEXT.sha256,
        "window": 8,
        "stride": 8,
        "windows": 3,
        "scored_tokens": 19,
    }
    assert facts["against"]["model"] == "w8"
    assert facts["comparison"]["rise_percent"] == pytest.approx(100)
    assert facts["comparison"]["same_first_choice"] == 1


def test_tasks_are_compared_question_by_question() -> None:
    own = evaluation("w4", None, score("logic", 1, 0, 1, 1))
    other = evaluation("w8", None, score("logic", 1, 1, 1, 0))
    lines = Report(own, other).lines()
    assert lines[0] == (
        "| task | metric | questions | w4 | 95 % interval | w8 | difference | 95 % interval |"
    )
    assert lines[2].startswith("| logic | acc | 4 | 0.7500 | 0.2500 to 1.0000 | 0.7500 | +0.0000 | -")
    (task,) = Report(own, other).to_json()["comparison"]["tasks"]  # pyright: ignore[reportIndexIssue] - JSON
    assert task["difference"] == 0
    assert task["difference_interval"][0] < 0 < task["difference_interval"][1]


def test_one_model_twice_is_told_apart_by_its_weights() -> None:
    own, other = evaluation("demo", None, score("logic", 1)), evaluation("demo", None, score("logic", 1))
    header = Report(own, replace(other, engine="numpy", weights="float32")).lines()[0]
    assert "| demo (4 bits, cpu) | 95 % interval | demo (float32, numpy) | difference |" in header


def test_text_and_tasks_stand_below_each_other() -> None:
    found = evaluation("w4", perplexity(LN2, LN2, LN2), score("logic", 1, 0))
    lines = Report(found).lines()
    assert lines.count("") == 2
    assert lines[-3:] == [
        "| task | metric | questions | w4 | 95 % interval |",
        "|---|---|---|---|---|",
        "| logic | acc | 2 | 0.5000 | 0.0000 to 1.0000 |",
    ]


def test_a_metric_that_is_no_mean_has_no_interval() -> None:
    found = TaskScore("translation", "bleu", 31.4, 10, None)
    assert found.cells() == ("translation", "bleu", "10", "31.4000", "")
    assert found.to_json()["interval"] is None
    assert found.comparison_cells(found) == ("31.4000", "+0.0000", "")


def test_different_tokens_are_not_compared() -> None:
    other = ScoredText("notes.txt", tuple(range(1, 22)), 8, 8)
    beside = Evaluation(
        model="w8", engine="cpu", weights="", tokenizer="", text=other, perplexity=perplexity(1, 1, 1)
    )
    with pytest.raises(RequestError, match="w8 has another tokenizer"):
        Report(OWN, beside)
