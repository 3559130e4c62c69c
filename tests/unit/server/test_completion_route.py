"""A completion through the app: texts and tokens, several prompts, echo and log probabilities."""

import json

import numpy as np
import pytest

from doubles.fakes import ByteTokenizer, HistoryEngine, ScriptedEngine
from running.served import MODEL, scripted_engine, served

COMPLETIONS = "/v1/completions"
VOCABULARY = ByteTokenizer().vocabulary_size


def body(prompt: object = "ab", **fields: object) -> dict[str, object]:
    return {"model": MODEL, "prompt": prompt, **fields}


@pytest.mark.parametrize("prompt", ["ab", [97, 98], ["ab"], [[97, 98]]])
def test_a_prompt_is_a_text_or_tokens_and_is_read_as_it_is(prompt: object) -> None:
    engine = scripted_engine("cd")
    with served(engine) as client:
        answer = client.post(COMPLETIONS, json=body(prompt)).json()
    assert engine.fed[0] == [97, 98]
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "cd", "logprobs": None, "finish_reason": "stop"}]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (2, 2)


def test_sixteen_tokens_come_when_no_limit_is_said() -> None:
    with served(scripted_engine("x" * 40)) as client:
        (choice,) = client.post(COMPLETIONS, json=body()).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("x" * 16, "length")


def test_several_prompts_get_several_answers_in_order_and_count_once() -> None:
    asked = body(["a", "bc"], n=2, max_tokens=4, temperature=1, seed=1)
    with served(HistoryEngine(VOCABULARY)) as client:
        answer = client.post(COMPLETIONS, json=asked).json()
        alone = client.post(COMPLETIONS, json={**asked, "prompt": "bc"}).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert texts[2:] == [choice["text"] for choice in alone["choices"]]
    assert answer["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("is_stream", [False, True])
def test_echo_puts_the_prompt_in_front(is_stream: bool) -> None:
    with served(scripted_engine("cd")) as client:
        response = client.post(COMPLETIONS, json=body(echo=True, stream=is_stream))
    if not is_stream:
        assert response.json()["choices"][0]["text"] == "abcd"
        return
    *events, _done, _rest = response.text.split("\n\n")
    texts = [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events]
    assert texts == ["abc", "d", ""]


def test_echo_of_a_prompt_alone_gives_it_back() -> None:
    with served(HistoryEngine(VOCABULARY)) as client:
        answer = client.post(COMPLETIONS, json=body(echo=True, max_tokens=0)).json()
    assert answer["choices"] == [{"index": 0, "text": "ab", "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"]["completion_tokens"] == 0


def test_log_probabilities_stand_beside_tokens_and_places() -> None:
    with served(scripted_engine("a你b")) as client:
        (choice,) = client.post(COMPLETIONS, json=body(logprobs=1)).json()["choices"]
    written = choice["logprobs"]
    assert written["tokens"] == ["a", "bytes:\\xe4", "bytes:\\xbd", "bytes:\\xa0", "b", ""]
    assert written["text_offset"] == [0, 1, 1, 1, 2, 3]
    assert written["token_logprobs"] == pytest.approx([0.0] * 6, abs=1e-6)
    assert [list(top) for top in written["top_logprobs"]] == [[name] for name in written["tokens"]]


def test_a_token_that_is_not_among_the_likeliest_is_told_beside_them() -> None:
    engine = ScriptedEngine(VOCABULARY)
    row = np.full(VOCABULARY, -np.inf, np.float32)
    row[[97, 98]] = 1.0, 0.0
    engine.enqueue(row)
    asked = body(logprobs=1, logit_bias={"98": 50}, max_tokens=1)
    with served(engine) as client:
        written = client.post(COMPLETIONS, json=asked).json()["choices"][0]["logprobs"]
    assert written["tokens"] == ["b"]
    assert list(written["top_logprobs"][0]) == ["a", "b"]


def test_what_cannot_happen_is_written_as_a_number() -> None:
    engine = ScriptedEngine(VOCABULARY)
    row = np.full(VOCABULARY, -np.inf, np.float32)
    row[97] = 0
    engine.enqueue(row)
    with served(engine) as client:
        response = client.post(COMPLETIONS, json=body(logprobs=2, max_tokens=1))
    assert response.json()["choices"][0]["logprobs"]["top_logprobs"][0]["\0"] == -9999.0


def test_a_prompt_is_scored_with_echo_and_log_probabilities() -> None:
    engine = HistoryEngine(VOCABULARY)
    prompt = [97, 98, 99]
    rows = [engine.logits(prompt[:end]).astype(np.float64) for end in (1, 2)]
    defined = [row[token] - np.log(np.exp(row).sum()) for row, token in zip(rows, prompt[1:], strict=True)]
    with served(engine) as client:
        asked = body(prompt, echo=True, logprobs=1, max_tokens=0)
        (choice,) = client.post(COMPLETIONS, json=asked).json()["choices"]
    assert choice["text"] == "abc"
    written = choice["logprobs"]
    assert written["tokens"] == ["a", "b", "c"]
    assert written["token_logprobs"] == [None, *(pytest.approx(logprob, abs=1e-5) for logprob in defined)]
    assert written["top_logprobs"][0] is None
    assert written["text_offset"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"prompt": ""}, 400),
        ({"prompt": []}, 422),
        ({"prompt": [[]]}, 422),
        ({"prompt": [1, "a"]}, 422),
        ({"prompt": [10**6]}, 400),
        ({"prompt": [-1]}, 400),
        ({"prompt": [10**30]}, 400),
        ({"max_tokens": 0}, 400),
        ({"best_of": 2}, 400),
        ({"suffix": "z"}, 422),
        ({"logprobs": 21}, 422),
        ({"logprobs": True}, 422),
    ],
)
def test_what_cannot_be_honoured_is_refused(fields: dict[str, object], status: int) -> None:
    with served(scripted_engine()) as client:
        response = client.post(COMPLETIONS, json={**body(), **fields})
    assert (response.status_code, set(response.json())) == (status, {"error"})


def test_a_stream_counts_tokens_when_asked() -> None:
    asked = body(stream=True, stream_options={"include_usage": True})
    with served(scripted_engine("cd")) as client:
        *_, last, _done, _rest = client.post(COMPLETIONS, json=asked).text.split("\n\n")
    chunk = json.loads(last.removeprefix("data: "))
    assert (chunk["choices"], chunk["usage"]["total_tokens"]) == ([], 4)


def test_answers_of_one_request_are_bounded_in_all() -> None:
    with served(scripted_engine()) as client:
        response = client.post(COMPLETIONS, json=body(["a"] * 13, n=10))
    assert response.status_code == 400
    assert response.json()["error"]["message"] == (
        "the request asks for 13 prompts with 10 answers each; at most 128 answers are allowed in all"
    )


def test_the_token_that_ends_an_answer_has_a_log_probability_and_no_text() -> None:
    # Without it lm-evaluation-harness, which drops the answer's one token, dropped the prompt's last one.
    with served(scripted_engine("bc", "ab")) as client:  # the first one is what follows the prompt's tokens
        asked = body("abc", echo=True, logprobs=1, max_tokens=1)
        (scored,) = client.post(COMPLETIONS, json=asked).json()["choices"]
        (choice,) = client.post(COMPLETIONS, json=body(logprobs=0)).json()["choices"]
    assert (scored["text"], scored["finish_reason"]) == ("abc", "stop")
    assert scored["logprobs"]["tokens"] == ["a", "b", "c", ""]
    assert scored["logprobs"]["token_logprobs"][-1] == pytest.approx(0, abs=1e-3)
    assert (choice["text"], choice["logprobs"]["tokens"]) == ("ab", ["a", "b", ""])


def test_a_prompt_beyond_the_context_is_refused_by_its_own_name() -> None:
    with served(scripted_engine(max_context=16)) as client:
        error = client.post(COMPLETIONS, json=body([97] * 17)).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")


def test_a_text_that_cannot_fit_is_refused_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million digits were encoded in full where some tokens of a vocabulary are long: 8 s, 200 MB."""
    encoded: list[int] = []
    encode = ByteTokenizer.encode

    def count(tokenizer: ByteTokenizer, text: str) -> list[int]:
        encoded.append(len(text))
        return encode(tokenizer, text)

    monkeypatch.setattr(ByteTokenizer, "longest_token", 1000)
    monkeypatch.setattr(ByteTokenizer, "encode", count)
    with served(scripted_engine()) as client:
        response = client.post("/v1/completions", json={"model": MODEL, "prompt": "7" * 500_000})
    assert response.status_code == 400
    assert "the prompt has 4096 tokens at least, 256 are allowed" in response.text
    assert sum(encoded) == 4096


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"seed":' + b"9" * 100_000 + b"}", b'{"a":"\xff"}'])
def test_a_body_that_no_reader_of_json_takes_is_refused_with_reasons(body: bytes) -> None:
    with served(scripted_engine()) as client:
        response = client.post("/v1/completions", content=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_json")
    assert error["message"].startswith("the body cannot be read as JSON: it is not UTF-8, nested too deeply")


def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 MB of digits took 10 s of a core before they were refused."""
    monkeypatch.setattr(ByteTokenizer, "encode", lambda *_: pytest.fail("it was encoded"))
    with served(scripted_engine()) as client:
        digits = "7" * 100_000
        for path, body in (
            ("/v1/completions", {"model": MODEL, "prompt": digits}),
            ("/tokenize", {"model": MODEL, "prompt": digits}),
            ("/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": digits}]}),
        ):
            response = client.post(path, json=body)
            assert response.status_code == 400
            assert "the prompt has 100000 tokens at least, 256 are allowed" in response.text
