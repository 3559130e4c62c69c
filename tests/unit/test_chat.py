"""A conversation answers the same with and without reuse, and changes only when an answer is there."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baichuan2_tpu.chat import Conversation, prompt_budget, read_result
from baichuan2_tpu.errors import BackendError, ContextLengthError, RequestError
from baichuan2_tpu.generate.settings import GenerationSettings, SamplingSettings
from baichuan2_tpu.text.messages import Message
from baichuan2_tpu.text.template import BaichuanTemplate
from doubles.fakes import ByteTokenizer, FakeEngine, HistoryEngine, ScriptedEngine

TOKENIZER = ByteTokenizer()
TEMPLATE = BaichuanTemplate(TOKENIZER, 257, 258)
VOCABULARY = TOKENIZER.vocabulary_size
END = TOKENIZER.END_ID
GREEDY = GenerationSettings(sampling=SamplingSettings(temperature=0), max_tokens=6)
SEEDED = GenerationSettings(sampling=SamplingSettings(seed=1), max_tokens=6)


def open_conversation(
    engine: FakeEngine, settings: GenerationSettings = GREEDY, system: str | None = None
) -> Conversation:
    return Conversation(engine, TOKENIZER, TEMPLATE, settings, system=system)


def scripted(*answers: bytes, max_context: int = 64) -> ScriptedEngine:
    engine = ScriptedEngine(VOCABULARY, max_context=max_context)
    for answer in answers:
        engine.enqueue_ids([*answer, END])
    return engine


def said(*texts: str) -> tuple[Message, ...]:
    return tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def test_turns_are_kept_with_the_system_message_first() -> None:
    with open_conversation(scripted(b"yes", b"no"), system="S") as conversation:
        conversation.chat("a")
        conversation.chat("b")
        assert conversation.messages == (Message("system", "S"), *said("a", "yes", "b", "no"))


def test_the_second_turn_feeds_only_what_is_new() -> None:
    engine = scripted(b"yes", b"no")
    with open_conversation(engine) as conversation:
        conversation.chat("ab")
        engine.fed.clear()
        result = conversation.chat("cd")
    # The end token was never fed, so the next thing after the answer is the user's mark.
    assert engine.fed[0] == [257, *b"cd", 258]
    assert (result.stats.prompt_tokens, result.stats.reused_tokens) == (11, 7)


@given(turns=st.lists(st.text(min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=5))
@pytest.mark.parametrize("settings", [GREEDY, SEEDED])
def test_the_answer_is_the_same_without_reuse(settings: GenerationSettings, turns: list[str]) -> None:
    with open_conversation(HistoryEngine(VOCABULARY, max_context=120), settings, "S") as reusing:
        for turn in turns:
            before = reusing.messages[1:]
            fresh = open_conversation(HistoryEngine(VOCABULARY, max_context=120), settings, "S")
            fresh._rounds = before
            with fresh:
                expected = fresh.chat(turn)
            result = reusing.chat(turn)
            assert (result.token_ids, result.text) == (expected.token_ids, expected.text)
            assert expected.stats.reused_tokens == 0
            assert (result.stats.reused_tokens > 0) == (before != ())


def test_every_piece_says_how_many_rounds_were_dropped() -> None:
    engine = scripted(b"one", b"two", max_context=24)
    with open_conversation(engine) as conversation:
        conversation.chat("a" * 10)
        pieces = list(conversation.stream("b" * 10))
        assert {piece.dropped_rounds for piece in pieces} == {1}
        assert conversation.messages == said("a" * 10, "one", "b" * 10, "two")


def test_a_prompt_that_cannot_fit_changes_nothing() -> None:
    with open_conversation(scripted(b"yes", max_context=20)) as conversation:
        conversation.chat("a")
        with pytest.raises(ContextLengthError, match=r"prompt is at least 51 tokens .* 14 are allowed"):
            conversation.chat("x" * 50)
        assert conversation.messages == said("a", "yes")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_question_is_refused(text: str) -> None:
    with open_conversation(scripted()) as conversation:
        with pytest.raises(RequestError, match="is empty"):
            conversation.chat(text)
        assert conversation.messages == ()


def test_after_a_fault_the_messages_are_as_before_and_the_chat_goes_on() -> None:
    engine = HistoryEngine(VOCABULARY)
    with open_conversation(engine) as conversation:
        conversation.chat("a")
        before = conversation.messages
        engine.fail_after = 3
        with pytest.raises(BackendError):
            conversation.chat("b")
        assert conversation.messages == before
        engine.fail_after = None
        conversation.chat("b")
        assert len(conversation.messages) == 4


def test_an_answer_that_is_not_read_to_its_end_is_forgotten() -> None:
    with open_conversation(scripted(b"yes")) as conversation:
        events = conversation.stream("a")
        next(events)
        events.close()
        assert conversation.messages == ()


def test_a_cancelled_answer_stays_as_far_as_it_was_said() -> None:
    looks = iter([False, False, True])
    with open_conversation(scripted(b"yes")) as conversation:
        result = read_result(conversation.stream("a", lambda: next(looks)))
        assert result.finish_reason == "cancelled"
        assert conversation.messages == said("a", "ye")


def test_a_question_cancelled_before_anything_was_said_is_forgotten() -> None:
    with open_conversation(scripted(b"yes")) as conversation:
        list(conversation.stream("a", lambda: True))
        assert conversation.messages == ()


def test_an_empty_answer_is_kept() -> None:
    with open_conversation(scripted(b"", b"yes")) as conversation:
        conversation.chat("a")
        conversation.chat("b")
        assert conversation.messages == said("a", "", "b", "yes")


def test_a_role_id_in_the_answer_ends_it() -> None:
    engine = ScriptedEngine(VOCABULARY)
    engine.enqueue_ids([ord("y"), 257])
    with open_conversation(engine) as conversation:
        assert conversation.chat("a").text == "y"


def test_retry_answers_the_last_question_again() -> None:
    engine = scripted(b"yes", b"no")
    with open_conversation(engine) as conversation:
        conversation.chat("a")
        list(conversation.retry())
        assert conversation.messages == said("a", "no")


def test_a_retry_that_fails_keeps_the_old_answer() -> None:
    engine = scripted(b"yes")
    with open_conversation(engine) as conversation:
        conversation.chat("a")
        engine.fail_after = 0
        with pytest.raises(BackendError):
            list(conversation.retry())
        assert conversation.messages == said("a", "yes")


def test_retry_needs_a_question() -> None:
    with open_conversation(scripted()) as conversation, pytest.raises(RequestError, match="ask something"):
        list(conversation.retry())


def test_clear_keeps_the_system_message() -> None:
    with open_conversation(scripted(b"yes"), system="S") as conversation:
        conversation.chat("a")
        conversation.clear()
        assert conversation.messages == (Message("system", "S"),)


def test_a_new_system_message_keeps_what_was_said() -> None:
    with open_conversation(scripted(b"yes"), system="S") as conversation:
        conversation.chat("a")
        conversation.system = "T"
        assert conversation.messages == (Message("system", "T"), *said("a", "yes"))
        conversation.system = None
        assert (conversation.system, conversation.messages) == (None, said("a", "yes"))


def test_closing_gives_the_sequence_back() -> None:
    engine = scripted()
    conversation = open_conversation(engine)
    conversation.close()
    conversation.close()
    assert engine.open_sequences == 0


@pytest.mark.parametrize(
    ("max_context", "max_tokens", "budget"), [(4096, 2048, 2048), (4096, 512, 3584), (512, 2048, 256)]
)
def test_the_answer_gets_its_room_and_at_most_half(max_context: int, max_tokens: int, budget: int) -> None:
    assert prompt_budget(max_context, max_tokens) == budget


@pytest.mark.parametrize("system", [None, "系统"])
@pytest.mark.parametrize("answers", [(), (b"yes",)])
def test_a_saved_conversation_is_loaded_as_it_was(
    tmp_path: Path, system: str | None, answers: tuple[bytes, ...]
) -> None:
    path = tmp_path / "chat.json"
    with open_conversation(scripted(*answers), system=system) as conversation:
        for _ in answers:
            conversation.chat("你好")
        conversation.save(str(path))
        saved = conversation.messages
    with open_conversation(scripted(), system="other") as loaded:
        loaded.load(path)
        assert (loaded.messages, loaded.system) == (saved, system)
    assert [file.name for file in tmp_path.iterdir()] == ["chat.json"]


def test_a_conversation_that_cannot_be_saved_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with open_conversation(scripted()) as conversation:
        for path in (tmp_path / "taken", tmp_path / "missing" / "chat.json"):
            with pytest.raises(RequestError, match="cannot save to"):
                conversation.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_a_full_disk_leaves_the_old_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "chat.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with (
        open_conversation(scripted()) as conversation,
        pytest.raises(
            RequestError, match=r"cannot save to .*chat\.json: No space left on device; name a file"
        ),
    ):
        conversation.save(path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["chat.json"]


def document(*messages: object) -> dict[str, object]:
    return {"format": "baichuan2-tpu conversation 1", "messages": list(messages)}


USER = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "S"}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "not JSON"),
        ("[]", "holds a list, not a JSON object"),
        ("{}", "its format is None"),
        (json.dumps({"format": "other"}), "its format is 'other'"),
        (json.dumps({**document(), "messages": {}}), "no list of messages"),
        (json.dumps(document("a")), "a message is 'a'"),
        (json.dumps(document({"role": "user"})), "a message is"),
        (json.dumps(document({**USER, "extra": 1})), "a message is"),
        (json.dumps(document({"role": "tool", "content": ""})), "role is 'tool'"),
        (json.dumps(document(USER)), "has no answer"),
        (json.dumps(document(ANSWER)), "message 0 is an answer"),
        (json.dumps(document(SYSTEM, SYSTEM)), "message 1 is a system"),
        (json.dumps(document({**USER, "content": "\ud800"}, ANSWER)), "surrogate"),
    ],
)
def test_a_damaged_file_is_refused_and_changes_nothing(tmp_path: Path, content: str, fault: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(content)
    with open_conversation(scripted(b"yes"), system="S") as conversation:
        conversation.chat("a")
        before = conversation.messages
        with pytest.raises(RequestError, match=rf"chat\.json: .*{fault}"):
            conversation.load(path)
        assert conversation.messages == before


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    missing = pytest.raises(RequestError, match=r"none\.json: cannot be read \(No such file")
    with open_conversation(scripted()) as conversation, missing:
        conversation.load(tmp_path / "none.json")


def test_settings_can_change_between_turns() -> None:
    with open_conversation(scripted(b"yes", b"no")) as conversation:
        conversation.chat("a")
        conversation.settings = replace(GREEDY, max_tokens=1)
        assert conversation.chat("b").finish_reason == "length"
