"""What a task asks becomes the tokens that lm-evaluation-harness's own models would score."""

from dataclasses import replace

import pytest

from baichuan2_tpu.errors import ContextLengthError, RequestError
from baichuan2_tpu.evaluate.harness_requests import HarnessRequests
from doubles.recall import ASSISTANT, TOKENIZER, USER, recall_subject

END = TOKENIZER.END_ID


def requests(max_context: int = 256) -> HarnessRequests:
    return HarnessRequests(recall_subject(max_context=max_context))


def test_a_continuation_is_scored_behind_its_context() -> None:
    passage = requests().passage("is it", " so")
    assert (passage.tokens, passage.first) == (tuple(b"is it so"), 5)


def test_a_space_at_the_end_of_a_context_belongs_to_the_continuation() -> None:
    passage = requests().passage("is it ", "so")
    assert (passage.tokens, passage.first) == (tuple(b"is it so"), 5)


@pytest.mark.parametrize("context", ["", " "])
def test_an_empty_context_is_the_end_of_a_text(context: str) -> None:
    passage = requests().passage(context, "so")
    assert (passage.tokens, passage.first) == ((END, *f"{context}so".encode()), 1)


def test_the_first_id_of_a_text_goes_before_its_end() -> None:
    subject = recall_subject()
    own = HarnessRequests(replace(subject, config=replace(subject.config, bos_id=7)))
    assert own.passage("", "so").tokens[0] == 7


def test_a_model_without_either_cannot_have_an_empty_context() -> None:
    subject = recall_subject()
    own = HarnessRequests(replace(subject, config=replace(subject.config, eos_ids=())))
    with pytest.raises(RequestError, match="the model names neither bos nor eos"):
        own.passage("", "so")


def test_a_context_that_does_not_fit_loses_its_beginning_and_is_counted() -> None:
    own = requests(max_context=8)
    fitting, cut = own.passage("12345678", "9"), own.passage("0123456789", "ab")
    assert (fitting.tokens, fitting.first) == (tuple(b"123456789"), 8)
    assert (cut.tokens, cut.first) == (tuple(b"3456789ab"), 7)
    assert own.cut_requests == 1


def test_a_continuation_beyond_the_context_is_refused() -> None:
    with pytest.raises(ContextLengthError, match="continuation of 9 tokens, and the context holds 8"):
        requests(max_context=8).passage("x", "123456789")


@pytest.mark.parametrize(("text", "named"), [("x", "continuation"), ("", "continuation")])
def test_nothing_to_score_is_refused(text: str, named: str) -> None:
    with pytest.raises(RequestError, match=f"an empty {named}"):
        requests().passage(text, "")
    with pytest.raises(RequestError, match="an empty document"):
        requests().document("")


def test_a_document_is_cut_into_windows_that_score_each_of_its_tokens_once() -> None:
    passages = requests(max_context=4).document("0123456789")
    # The example of lm-evaluation-harness's own documentation of loglikelihood_rolling.
    assert [(one.tokens[0], bytes(one.tokens[one.first :])) for one in passages] == [
        (END, b"0123"),
        (ord("3"), b"4567"),
        (ord("5"), b"89"),
    ]


def test_a_question_is_greedy_unless_the_task_samples() -> None:
    question = requests().question("why", {"until": ["\n", ""], "max_gen_toks": 5, "temperature": 1.0})
    assert question.ids == tuple(b"why")
    assert question.settings.sampling.is_greedy
    assert (question.settings.stop, question.settings.max_tokens) == (("\n",), 5)


def test_a_task_may_sample_and_repeats_itself() -> None:
    asked = {"do_sample": True, "temperature": 0.5, "top_k": 3, "until": "\n"}
    settings = requests(max_context=300).question("why", asked).settings
    assert (settings.sampling.temperature, settings.sampling.top_k, settings.sampling.seed) == (0.5, 3, 0)
    assert settings.max_tokens == 256


def test_the_end_of_a_question_leaves_room_for_the_answer() -> None:
    own = requests(max_context=8)
    assert own.question("0123456789", {"max_gen_toks": 3}).ids == tuple(b"56789")
    assert own.question("", {"max_gen_toks": 3}).ids == (END,)
    with pytest.raises(ContextLengthError, match="answers of 8 tokens, and the context holds 8"):
        own.question("why", {"max_gen_toks": 8})


def test_a_setting_that_cannot_be_served_is_named() -> None:
    with pytest.raises(RequestError, match="generation_kwargs ask for num_beams; allowed are"):
        requests().question("why", {"num_beams": 4})


def test_a_conversation_comes_back_as_its_own_tokens() -> None:
    own = requests()
    key = own.chat([{"role": "user", "content": "hi"}], is_answered=False)
    passage = own.passage(key, "yes")
    assert passage.tokens == (USER, *b"hi", ASSISTANT, *b"yes")
    assert passage.first == 4
    assert own.question(key, {"max_gen_toks": 3}).ids == (USER, *b"hi", ASSISTANT)


EXAMPLES = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "six"},
]


def test_examples_that_do_not_fit_a_chat_are_left_out_whole_and_counted() -> None:
    # Left out examples were not counted, and room for the answer was cut out of the middle of a message.
    own = requests(max_context=15)
    key = own.chat(EXAMPLES, is_answered=False)
    newest = (USER, *b"two", ASSISTANT, *b"2", USER, *b"six", ASSISTANT)
    passage = own.passage(key, "6")
    assert (passage.tokens, passage.first) == ((*newest, *b"6"), 11)
    assert own.cut_requests == 1
    assert own.question(key, {"max_gen_toks": 4}).ids == newest
    assert own.question(key, {"max_gen_toks": 5}).ids == (USER, *b"six", ASSISTANT)
    assert own.cut_requests == 3


def test_a_chat_that_fits_is_not_counted() -> None:
    own = requests(max_context=20)
    key = own.chat(EXAMPLES, is_answered=False)
    assert own.question(key, {"max_gen_toks": 3}).ids[:4] == (USER, *b"one")
    assert own.cut_requests == 0


def test_a_question_of_a_chat_that_does_not_fit_alone_is_refused() -> None:
    own = requests(max_context=8)
    key = own.chat([{"role": "system", "content": "be"}, *EXAMPLES], is_answered=False)
    complaint = (
        "a question of 7 tokens in a chat, and recall has room for 6 before the answer; open the model"
    )
    with pytest.raises(ContextLengthError, match=complaint) as raised:
        own.question(key, {"max_gen_toks": 2})
    assert "--max-tokens" not in str(raised.value)
    with pytest.raises(ContextLengthError, match="question of 7 tokens in a chat, and recall has room for 6"):
        own.passage(key, "666")


@pytest.mark.parametrize(
    ("role", "is_answered", "complaint"),
    [
        ("tool", False, "the task asks in the role 'tool'; leave --chat out"),
        ("user", True, r"the task begins the answer itself \(gen_prefix\); leave --chat out"),
    ],
)
def test_a_conversation_that_cannot_be_held_is_refused(role: str, is_answered: bool, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        requests().chat([{"role": role, "content": "hi"}], is_answered=is_answered)


def test_a_model_without_a_template_knows_no_chat() -> None:
    own = HarnessRequests(replace(recall_subject(), template=None))
    with pytest.raises(RequestError, match="recall knows no chat; leave --chat out"):
        own.chat([{"role": "user", "content": "hi"}], is_answered=False)
