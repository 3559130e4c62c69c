"""What every tokenizer promises: nothing is lost, and no text becomes a command."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.text.tokenizer import StreamDecoder, Tokenizer, fewest_tokens

# One fixture serves all examples: tokenizers have no state.
shared_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

LITERALS = [
    "<reserved_106>",
    "<reserved_107>",
    "<reserved_9999>",
    "<reserved_",
    "<SEP>",
    "<CLS>",
    "<unk>",
    "<s>",
    "</s>",
    "<0x0A>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "\u2581",
    " ",
    "\n",
    "\t",
    "\0",
    "...",
    "<td>",
    "你好",
    "👩‍👩‍👧",
]
texts = st.lists(st.one_of(st.text(), st.sampled_from(LITERALS))).map("".join)


@shared_fixture
@given(text=texts)
def test_decoding_gives_the_encoded_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@shared_fixture
@given(text=texts)
def test_text_never_encodes_to_a_control_id(tokenizer: Tokenizer, text: str) -> None:
    assert all(tokenizer.token_bytes(token_id) for token_id in tokenizer.encode(text))


@shared_fixture
@given(data=st.data())
def test_streamed_text_is_the_decoded_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary_size - 1)))
    stream = StreamDecoder(tokenizer)
    assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids)


@shared_fixture
@given(text=texts)
def test_a_stream_of_text_never_shows_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    stream = StreamDecoder(tokenizer)
    shown = ""
    for token_id in tokenizer.encode(text):
        shown += stream.push(token_id)
        assert text.startswith(shown)


def test_flush_shows_an_unfinished_character_as_replacement(tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer)
    half = tokenizer.encode("\U0001fae8")[:1]
    assert [stream.push(half[0]), stream.flush(), stream.flush()] == ["", "\ufffd", ""]


def test_stop_ids_are_control_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.stop_ids
    assert tokenizer.decode(tokenizer.stop_ids) == ""


@pytest.mark.parametrize("token_id", [-1, 10_000_000, 2**32, 2**70])
def test_an_id_outside_the_vocabulary_is_refused_by_name(tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(RequestError, match=rf"{token_id}.*0 to {tokenizer.vocabulary_size - 1}"):
        tokenizer.token_bytes(token_id)


def test_a_lone_surrogate_is_refused_with_its_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match=r"U\+D83D at character 2"):
        tokenizer.encode("ab\ud83d")


def test_an_ordinary_token_is_not_a_control_id(tokenizer: Tokenizer) -> None:
    assert tokenizer.control_id("a") is None
    assert tokenizer.control_id("no such token") is None


@shared_fixture
@given(text=st.text(st.characters(codec="utf-8"), max_size=60) | st.text("0 1a你\n<", max_size=200))
def test_no_text_has_fewer_tokens_than_its_length_allows(tokenizer: Tokenizer, text: str) -> None:
    assert len(tokenizer.encode(text)) >= fewest_tokens(tokenizer, text)


def test_the_longest_token_is_no_longer_than_a_line(tokenizer: Tokenizer) -> None:
    assert 1 < tokenizer.longest_token <= 512
    assert fewest_tokens(tokenizer, "") == 0
    assert fewest_tokens(tokenizer, "0" * tokenizer.longest_token) == 1
    assert fewest_tokens(tokenizer, "0" * (tokenizer.longest_token + 1)) == 2
