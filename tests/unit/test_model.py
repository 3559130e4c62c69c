"""A script opens a model and talks to it as the command line does, under the same checks."""

import logging
from itertools import chain
from pathlib import Path

import pytest

from baichuan2_tpu import memory
from baichuan2_tpu.errors import BackendError, CheckpointError, ContextLengthError, RequestError
from baichuan2_tpu.model import Model, load
from baichuan2_tpu.quantize import quantize
from baichuan2_tpu.text.messages import Message
from models.tiny_checkpoint import rope_config, write_official
from models.tiny_tokenizer import write_bpe, write_sentencepiece

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def float_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Baichuan2 in small; its weights are random, so it talks nonsense, the same each time."""
    directory = tmp_path_factory.mktemp("models") / "Tiny-Chat"
    write_official(directory, rope_config(vocabulary_size=448))
    write_sentencepiece(directory)
    return directory


@pytest.fixture(scope="module")
def checkpoint(float_checkpoint: Path) -> Path:
    quantized = float_checkpoint.with_name("Tiny-Chat-w4")
    quantize(float_checkpoint, quantized, bits=4, method="search")
    (quantized / "generation_config.json").write_text('{"max_new_tokens": 32}')  # greedy
    return quantized


@pytest.fixture
def model(checkpoint: Path) -> Model:
    return load(checkpoint, threads=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has no mark of a chat."""
    directory = tmp_path_factory.mktemp("models") / "Tiny-Base"
    write_official(directory, rope_config(vocabulary_size=448))
    (directory / "tokenizer.model").unlink()
    write_bpe(directory, special=["<|endoftext|>"])
    quantize(directory, directory.with_name("Tiny-Base-w4"), bits=4, method="search")
    return directory.with_name("Tiny-Base-w4")


def test_a_loaded_model_says_what_it_is(model: Model, checkpoint: Path) -> None:
    assert (model.name, model.kind, model.engine.name) == (str(checkpoint), "quantized", "cpu")
    assert repr(model) == f"<Model {checkpoint} on cpu, 256 tokens of context>"
    assert (model.max_context, model.config.vocabulary_size) == (256, 448)
    assert (model.settings.max_tokens, model.settings.sampling.is_greedy) == (32, True)


def test_progress_tells_how_much_of_a_prompt_is_read(model: Model) -> None:
    reads: list[tuple[int, int]] = []
    answer = model.chat("sort " * 60, max_tokens=1, progress=lambda read, total: reads.append((read, total)))
    prompt_tokens = answer.stats.prompt_tokens
    assert reads == [(128, prompt_tokens), (prompt_tokens, prompt_tokens)]


def test_a_chat_returns_text_and_figures(model: Model) -> None:
    answer = model.chat(QUESTION, max_tokens=6)
    assert (answer.finish_reason, answer.stats.generated_tokens) == ("length", 6)
    assert answer.text == model.tokenizer.decode(answer.token_ids)
    assert answer.stats.prompt_tokens == len(model.tokens([{"role": "user", "content": QUESTION}]))


def test_text_mappings_and_messages_ask_the_same(model: Model) -> None:
    first = model.chat(QUESTION, max_tokens=6).token_ids
    assert model.chat([{"role": "user", "content": QUESTION}], max_tokens=6).token_ids == first
    assert model.chat([Message("user", QUESTION)], max_tokens=6).token_ids == first


def test_pieces_of_a_stream_make_the_answer_and_the_last_has_the_result(model: Model) -> None:
    pieces = list(model.stream(QUESTION, max_tokens=6, logprobs=1))
    result = pieces[-1].result
    assert [piece.result for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert result is not None
    assert "".join(piece.text for piece in pieces) == result.text
    tokens = list(chain.from_iterable(piece.tokens for piece in pieces))
    assert tuple(token.token_id for token in tokens) == result.token_ids
    assert all(token.logprob is not None and token.logprob <= 0 for token in tokens)
    assert result.token_ids == model.chat(QUESTION, max_tokens=6).token_ids


def test_prompt_tokens_come_once_where_they_are_asked_for(model: Model) -> None:
    pieces = list(model.stream_generate("Paris is", max_tokens=4, prompt_logprobs=0))
    scored = [piece.prompt_tokens for piece in pieces if piece.prompt_tokens]
    assert [[token.token_id for token in tokens] for tokens in scored] == [model.tokens("Paris is")]


def test_a_setting_holds_for_its_call_alone(model: Model) -> None:
    drawn = model.chat(QUESTION, temperature=1.5, seed=7, max_tokens=12).token_ids
    assert drawn == model.chat(QUESTION, temperature=1.5, seed=7, max_tokens=12).token_ids
    greedy = model.chat(QUESTION, max_tokens=12).token_ids
    assert drawn != greedy
    assert model.settings.sampling.is_greedy


def test_a_bias_and_a_stop_text_are_settings_too(model: Model) -> None:
    (letter,) = model.tokens("P")
    assert model.chat(QUESTION, max_tokens=3, logit_bias={letter: 100}).text == "PPP"
    assert model.chat(QUESTION, max_tokens=3, logit_bias={letter: 100}, stop="PP").text == ""


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"temprature": 1}, "there is no setting 'temprature'; allowed are temperature, top_k, top_p, "),
        ({"temperature": "hot"}, "temperature is 'hot'; a number is allowed"),
        ({"temperature": -1}, "temperature is -1.0; 0 to 100 is allowed"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5; a whole number is allowed"),
        ({"stop": 3}, "stop is 3; a text or several are allowed"),
        ({"stop": ["a", 3]}, r"stop is \['a', 3\]; a text or several are allowed"),
        ({"stop_ids": "a"}, "stop_ids is 'a'; a whole number is allowed"),
        ({"ignore_eos": 1}, "ignore_eos is 1; True or False is allowed"),
        ({"grammar": "json"}, "grammar is 'json'; a compiled grammar is allowed"),
        ({"logit_bias": [1]}, r"logit_bias is \[1\]; a mapping of token ids to numbers is allowed"),
    ],
)
def test_a_wrong_setting_is_refused_before_the_first_piece(
    model: Model, settings: dict[str, int], complaint: str
) -> None:
    with pytest.raises(RequestError, match=complaint):
        model.stream(QUESTION, **settings)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RequestError, match=complaint):
        model.conversation(**settings)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RequestError, match=complaint):
        model.stream_generate(QUESTION, **settings)  # pyright: ignore[reportArgumentType]


def test_what_is_no_message_is_refused(model: Model) -> None:
    with pytest.raises(RequestError, match="a message is 'hi'; an object with the texts role and content"):
        model.chat(["hi"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(RequestError, match="a message is 5; a text is allowed"):
        model.conversation(system=5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RequestError, match="message 1 is a system message; it is allowed first only"):
        model.chat([{"role": "user", "content": "hi"}, {"role": "system", "content": "Be brief."}])


@pytest.mark.parametrize("messages", [None, 5, b"hi", {"role": "user", "content": "hi"}], ids=repr)
def test_what_is_not_a_list_of_messages_is_refused_by_name(model: Model, messages: object) -> None:
    # A single message was read by its keys: "a message is 'role'".
    with pytest.raises(RequestError, match=r"^messages is .*; a text or a list of messages is allowed"):
        model.chat(messages)  # pyright: ignore[reportArgumentType]


def test_a_conversation_remembers_and_computes_only_what_is_new(model: Model) -> None:
    with model.conversation(system="Be brief.", max_tokens=6) as conversation:
        first = conversation.chat(QUESTION)
        *_, last = conversation.stream("And of Germany?")
        assert [message.role for message in conversation.messages] == [
            "system",
            *("user", "assistant") * 2,
        ]
    assert last.result is not None
    assert last.result.stats.reused_tokens >= first.stats.prompt_tokens
    messages = [*conversation.messages[:-1]]
    assert model.chat(messages, max_tokens=6).token_ids == last.result.token_ids


def test_a_stream_says_how_many_rounds_did_not_fit(checkpoint: Path) -> None:
    messages = [Message("user", QUESTION), Message("assistant", "Paris."), Message("user", QUESTION)]
    with load(checkpoint, threads=1) as model:
        whole = len(model.tokens(messages))
    with load(checkpoint, threads=1, context=whole) as model:
        pieces = list(model.stream(messages, max_tokens=4))
    assert {piece.dropped_rounds for piece in pieces} == {1}


def test_generate_continues_a_text_as_it_is(model: Model) -> None:
    answer = model.generate("Paris is", max_tokens=6)
    assert answer.stats.prompt_tokens == len(model.tokenizer.encode("Paris is"))
    assert model.generate(model.tokens("Paris is"), max_tokens=6).token_ids == answer.token_ids
    assert answer.token_ids != model.chat("Paris is", max_tokens=6).token_ids


@pytest.mark.parametrize("prompt", [["a", "b"], None, 3, b"hi", [1, 2.5]], ids=repr)
def test_what_is_not_one_prompt_is_refused(model: Model, prompt: object) -> None:
    # Bytes were taken for token ids.
    with pytest.raises(RequestError, match=r"^the prompt is .*; one text, or the token ids of one"):
        model.generate(prompt)  # pyright: ignore[reportArgumentType]


def test_a_base_model_loads_and_only_a_chat_needs_a_template(base: Path) -> None:
    with load(base, threads=1) as model:
        assert model.template is None
        assert model.generate("Paris is", max_tokens=4).stats.generated_tokens == 4
        for ask in (model.chat, model.stream, lambda text: model.tokens([Message("user", text)])):
            with pytest.raises(CheckpointError, match=r"knows no chat marks: .* use a chat model"):
                ask(QUESTION)
        with pytest.raises(CheckpointError, match="knows no chat marks"):
            model.conversation()


def test_a_context_that_memory_cannot_hold_is_refused_in_a_script_too(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the command line checked it: a script was killed by the system.
    monkeypatch.setattr("baichuan2_tpu.model.open_engine", lambda *_, **__: pytest.fail("was opened"))
    with pytest.raises(
        ContextLengthError, match=r"a context of 1000000000000 tokens needs .* GB of KV cache"
    ):
        load(checkpoint, context=10**12)


def test_a_context_that_was_not_asked_for_is_shortened_with_a_notice(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(checkpoint, threads=1) as model:
        need = memory.memory_need(model.config, model.engine.kv_bits)
    monkeypatch.setattr(memory, "machine_memory_bytes", lambda: need.total_bytes(40))
    notices: list[str] = []
    with load(checkpoint, threads=1, notice=notices.append) as model:
        assert model.max_context == 40
    assert notices == ["context shortened to 40 of the model's 256 tokens: memory is short"]


def test_a_float_checkpoint_is_quantised_and_loaded_with_progress_and_a_line_in_the_log(
    float_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen: list[tuple[str, int, int]] = []
    with (
        caplog.at_level(logging.INFO, "baichuan2_tpu"),
        load(float_checkpoint, threads=1, progress=lambda *event: seen.append(event)) as model,
    ):
        assert model.kind == "quantized"
    assert list(dict.fromkeys(what for what, _, _ in seen)) == ["quantising", "loading"]
    assert seen[-1][1] == seen[-1][2]
    assert f"quantising {float_checkpoint} to 4 bits" in caplog.text


def test_a_path_is_never_taken_for_a_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    with pytest.raises(CheckpointError, match=r"demo: holds no config\.json"):
        load(Path("demo"))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"context": 0}, "context is 0; 1 or more is allowed"),
        ({"context": "512"}, "context is '512'; a whole number is allowed"),
        ({"context": 512.0}, r"context is 512\.0; a whole number is allowed"),
        ({"threads": 0}, "threads is 0; 1 or more is allowed"),
        ({"device": -1}, "device is -1; 0 or more is allowed"),
        ({"engine": "gpu"}, "there is no engine 'gpu'; choose one of auto, cpu, bmrt, sail, simulator"),
    ],
)
def test_a_wrong_setting_of_the_engine_is_refused(
    checkpoint: Path, settings: dict[str, int], complaint: str
) -> None:
    with pytest.raises(RequestError, match=complaint):
        load(checkpoint, **settings)  # pyright: ignore[reportArgumentType]


def test_a_closed_model_answers_no_more(checkpoint: Path) -> None:
    with load(checkpoint, threads=1) as model:
        conversation = model.conversation()
        stream = model.stream(QUESTION, max_tokens=6)
        next(stream)
    model.close()
    conversation.close()
    stream.close()
    with pytest.raises(BackendError, match="is closed; open the model again"):
        model.chat(QUESTION)


def test_an_answer_that_is_not_read_to_its_end_gives_its_memory_back(model: Model) -> None:
    for _ in range(300):  # more than an engine keeps open
        stream = model.stream(QUESTION, max_tokens=6)
        next(stream)
        stream.close()
    assert model.chat(QUESTION, max_tokens=2).stats.generated_tokens == 2
