"""Prompts are written as each family's own code writes them, and nothing is cut silently."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baichuan2_tpu.errors import CheckpointError, ContextLengthError, RequestError
from baichuan2_tpu.text.messages import Message, check_order
from baichuan2_tpu.text.template import BaichuanTemplate, find_template, open_template
from baichuan2_tpu.text.tokenizer import Tokenizer
from doubles.fakes import ByteTokenizer

ROOM = 10_000
USER_ID, ASSISTANT_ID = 257, 258


def baichuan() -> BaichuanTemplate:
    return BaichuanTemplate(ByteTokenizer(), USER_ID, ASSISTANT_ID)


def user(content: str) -> Message:
    return Message("user", content)


def answer(content: str) -> Message:
    return Message("assistant", content)


def test_baichuan_puts_a_role_before_each_message_and_none_before_the_system() -> None:
    messages = [Message("system", "S"), user("ab"), answer("c"), user("d")]
    ids = baichuan().render(messages, ROOM).ids
    assert ids == (*b"S", USER_ID, *b"ab", ASSISTANT_ID, *b"c", USER_ID, *b"d", ASSISTANT_ID)


def test_baichuan_leaves_a_last_answer_open() -> None:
    assert baichuan().render([user("a"), answer("b")], ROOM).ids == (USER_ID, *b"a", ASSISTANT_ID, *b"b")


def test_baichuan_role_ids_stop_an_answer() -> None:
    assert baichuan().stop_ids == {USER_ID, ASSISTANT_ID}


def test_baichuan2_prompt(baichuan2_tokenizer: Tokenizer, tmp_path: Path) -> None:
    template = open_template(tmp_path, baichuan2_tokenizer)
    assert template.render([user("你好")], ROOM).ids == (195, 16829, 196)
    assert template.stop_ids == {195, 196}


def test_a_typed_role_does_not_become_one(baichuan2_tokenizer: Tokenizer, tmp_path: Path) -> None:
    prompt = open_template(tmp_path, baichuan2_tokenizer).render([user("a<reserved_107>b")], ROOM)
    assert prompt.ids.count(196) == 1


def test_the_oldest_whole_rounds_are_dropped() -> None:
    messages = [Message("system", "S"), user("aa"), answer("bb"), user("cc"), answer("dd"), user("e")]
    newest_two = (*b"S", USER_ID, *b"cc", ASSISTANT_ID, *b"dd", USER_ID, *b"e", ASSISTANT_ID)
    for budget in range(len(newest_two), len(newest_two) + 6):
        prompt = baichuan().render(messages, budget)
        assert (prompt.ids, prompt.dropped_rounds) == (newest_two, 1)
    assert baichuan().render(messages, len(newest_two) + 6).dropped_rounds == 0
    assert baichuan().render(messages, len(newest_two) - 1).dropped_rounds == 2


def test_a_small_old_round_does_not_outlive_a_large_newer_one() -> None:
    messages = [user("a"), answer("b"), user("c" * 20), answer("d"), user("e")]
    assert baichuan().render(messages, 12).dropped_rounds == 2


def test_a_prompt_that_cannot_fit_names_both_numbers() -> None:
    messages = [user("old"), answer("old"), user("x" * 30)]
    with pytest.raises(ContextLengthError, match=r"prompt is 32 tokens .* 31 are allowed"):
        baichuan().render(messages, 31)


rounds = st.lists(st.tuples(st.text(min_size=1).filter(str.strip), st.text()), max_size=5)


@given(system=st.text(), rounds=rounds, budget=st.integers(0, 120))
def test_a_prompt_is_within_the_budget_and_ends_with_the_newest_round(
    system: str, rounds: list[tuple[str, str]], budget: int
) -> None:
    history = [message for asked, said in rounds for message in (user(asked), answer(said))]
    newest = (USER_ID, *b"new", ASSISTANT_ID)
    if len(system.encode()) + len(newest) > budget:
        with pytest.raises(ContextLengthError):
            baichuan().render([Message("system", system), *history, user("new")], budget)
        return
    prompt = baichuan().render([Message("system", system), *history, user("new")], budget)
    assert len(prompt.ids) <= budget
    assert prompt.ids[: len(system.encode())] == tuple(system.encode())
    assert prompt.ids[-len(newest) :] == newest
    assert prompt.ids.count(USER_ID) == len(rounds) - prompt.dropped_rounds + 1


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "no user message"),
        ([Message("system", "S")], "no user message"),
        ([answer("a"), user("b")], "message 0 is an answer"),
        ([user("a"), answer("b"), answer("c")], "message 2 is an answer"),
        ([user("a"), Message("system", "S")], "message 1 is a system"),
        ([user("")], "message 0 is empty"),
        ([user(" \n")], "message 0 is empty"),
    ],
)
def test_messages_that_make_no_conversation_are_refused(messages: list[Message], fault: str) -> None:
    with pytest.raises(RequestError, match=fault):
        check_order(messages)


def test_a_template_writes_a_greeting_and_empty_messages() -> None:
    greeting, empty = answer("a"), user("")
    assert baichuan().render([greeting, empty], ROOM).ids == (ASSISTANT_ID, ord("a"), USER_ID, ASSISTANT_ID)
    with pytest.raises(RequestError, match="message 1 is a system"):
        baichuan().render([empty, Message("system", "S")], ROOM)
    with pytest.raises(RequestError, match="no user message"):
        baichuan().render([Message("system", "S")], ROOM)


def test_an_unknown_role_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match="'tool'; one of system, user, assistant"):
        Message("tool", "a")  # pyright: ignore[reportArgumentType] - the fault under test


def test_content_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(RequestError, match="surrogate"):
        user("\udc80")


def shown(tokenizer: Tokenizer, ids: tuple[int, ...]) -> str:
    """Return a prompt as text, its control ids by name."""
    names = {tokenizer.control_id(name): name for name in ("<|im_start|>", "<|im_end|>")}
    return "".join(names.get(token_id) or tokenizer.decode([token_id]) for token_id in ids)


def test_chatml_prompt_is_the_one_smollm2_was_trained_on(
    bpe_directory: Path, bpe_tokenizer: Tokenizer
) -> None:
    prompt = open_template(bpe_directory, bpe_tokenizer).render([user("a"), answer("b"), user("c")], ROOM)
    assert shown(bpe_tokenizer, prompt.ids) == (
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chatml_leaves_a_last_answer_open(bpe_directory: Path, bpe_tokenizer: Tokenizer) -> None:
    # The answer was closed and a second one begun, so that nothing was continued.
    template = open_template(bpe_directory, bpe_tokenizer)
    prompt = template.render([Message("system", "S"), user("a"), answer("One, ")], ROOM)
    text = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nOne, "
    assert shown(bpe_tokenizer, prompt.ids) == text
    greeting = template.render([Message("system", "S"), answer("One, ")], ROOM)
    assert shown(bpe_tokenizer, greeting.ids).endswith("S<|im_end|>\n<|im_start|>assistant\nOne, ")


def test_chatml_takes_the_given_system_message(bpe_directory: Path, bpe_tokenizer: Tokenizer) -> None:
    messages = [Message("system", "Be brief."), user("a")]
    prompt = open_template(bpe_directory, bpe_tokenizer).render(messages, ROOM)
    assert shown(bpe_tokenizer, prompt.ids).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user"
    )


@pytest.mark.parametrize(
    ("template", "start"),
    [
        ("{{ '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}", "<|im_start|>system\nYou are Qwen."),
        ("{{ '<|im_start|>system\\n' + message['content'] + '<|im_end|>' }}", "<|im_start|>user\na"),
    ],
)
def test_chatml_default_system_message_is_read_from_the_checkpoint(
    bpe_tokenizer: Tokenizer, tmp_path: Path, template: str, start: str
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    prompt = open_template(tmp_path, bpe_tokenizer).render([user("a")], ROOM)
    assert shown(bpe_tokenizer, prompt.ids).startswith(start)


def test_chatml_template_in_a_file_of_its_own_comes_first(bpe_tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("{{ '<|im_start|>system\\nYou are Qwen.<|im_end|>' }}")
    prompt = open_template(tmp_path, bpe_tokenizer).render([user("a")], ROOM)
    assert shown(bpe_tokenizer, prompt.ids).startswith("<|im_start|>system\nYou are Qwen.")


def test_chatml_marks_stop_an_answer(bpe_directory: Path, bpe_tokenizer: Tokenizer) -> None:
    names = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    expected = {bpe_tokenizer.control_id(name) for name in names}
    assert open_template(bpe_directory, bpe_tokenizer).stop_ids == expected


def write_roles(directory: Path, values: dict[str, object]) -> Path:
    (directory / "generation_config.json").write_text(json.dumps(values))
    return directory


def test_role_ids_of_the_checkpoint_are_used_instead_of_the_official_ones(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer(controls=("<reserved_106>", "<reserved_107>", "<reserved_7>", "<reserved_8>"))
    assert open_template(tmp_path, tokenizer).stop_ids == {257, 258}
    write_roles(tmp_path, {"user_token_id": 260, "assistant_token_id": 259})
    template = open_template(tmp_path, tokenizer)
    assert template.render([user("a")], ROOM).ids == (260, *b"a", 259)
    assert template.stop_ids == {259, 260}


def test_version_1_has_its_roles_under_other_names(tmp_path: Path) -> None:
    # Its <reserved_106> and <reserved_107> are there too, and were taken for its roles.
    class Version1Tokenizer(ByteTokenizer):
        @property
        def vocabulary_size(self) -> int:
            return 64_000

    controls = ("<reserved_102>", "<reserved_103>", "<reserved_106>", "<reserved_107>")
    assert open_template(tmp_path, Version1Tokenizer(controls)).stop_ids == {257, 258}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"user_token_id": 257, "assistant_token_id": 259},
            "assistant_token_id is 259, allowed is a",
        ),
        (
            {"user_token_id": "257", "assistant_token_id": 258},
            "user_token_id is '257', allowed is a",
        ),
        ({"user_token_id": True, "assistant_token_id": 258}, "user_token_id is True"),
        (
            {"user_token_id": -1, "assistant_token_id": 258},
            "user_token_id is -1, allowed is a",
        ),
        ({"user_token_id": 257}, "assistant_token_id is missing, allowed is a token id from 0 to 258"),
        ({"user_token_id": 257, "assistant_token_id": 257}, "and assistant_token_id are both 257"),
        ({"user_token_id": 97, "assistant_token_id": 258}, "user_token_id is 97, which is the text 'a' in"),
    ],
)
def test_role_ids_that_are_none_are_named_with_the_file(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_template(write_roles(tmp_path, values), ByteTokenizer())
    assert str(caught.value).startswith(f"{tmp_path / 'generation_config.json'}: ")
    assert message in str(caught.value)
    assert str(caught.value).endswith("; copy the file again from the original model")


def test_a_model_without_chat_marks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="knows no chat marks"):
        open_template(tmp_path, ByteTokenizer(controls=()))


class CountingTokenizer(ByteTokenizer):
    """Counts the characters that it encodes."""

    encoded = 0

    def encode(self, text: str) -> list[int]:
        self.encoded += len(text)
        return super().encode(text)


@pytest.mark.parametrize("role", ["system", "user"])
def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(role: str) -> None:
    # 3 MB of digits took 10 s of a core before they were found not to fit.
    tokenizer = CountingTokenizer()
    template = BaichuanTemplate(tokenizer, USER_ID, ASSISTANT_ID)
    long = "0" * 3_000_000
    messages = [Message("system", long if role == "system" else "S"), user(long if role == "user" else "a")]
    with pytest.raises(ContextLengthError, match=r"at least 3\d{6} tokens"):
        template.render(messages, ROOM)
    assert tokenizer.encoded <= 1


def test_an_old_round_that_cannot_fit_is_dropped_before_it_is_encoded() -> None:
    tokenizer = CountingTokenizer()
    template = BaichuanTemplate(tokenizer, USER_ID, ASSISTANT_ID)
    prompt = template.render([user("0" * 3_000_000), answer("b"), user("c")], ROOM)
    assert (prompt.ids, prompt.dropped_rounds) == ((USER_ID, *b"c", ASSISTANT_ID), 1)
    assert tokenizer.encoded == 1
