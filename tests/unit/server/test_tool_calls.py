"""Calls are read the same, wherever the pieces of an answer are cut."""

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from baichuan2_tpu.server.api.schema_chat import FunctionCall, ToolCall
from baichuan2_tpu.server.api.tool_calls import CallPiece, CallReader, join_calls
from baichuan2_tpu.server.api.tools import CALL_BEGIN, write_calls

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\{}[], 你\n', max_size=6),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text('k"}', max_size=2), children),
    max_leaves=8,
)
calls = st.lists(
    st.tuples(
        st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True),
        st.dictionaries(st.text('k"}\\', max_size=3), values, max_size=3),
        st.booleans(),
    ),
    max_size=3,
)
texts = st.text("<tool_cal>[ x", max_size=20).filter(lambda text: CALL_BEGIN not in text)


@given(text=texts, made=calls, cuts=st.lists(st.integers(0, 400), max_size=12))
def test_text_and_calls_are_read_from_any_pieces(
    text: str, made: list[tuple[str, dict[str, object], bool]], cuts: list[int]
) -> None:
    expected = [
        (name, json.dumps(arguments, ensure_ascii=is_ascii, indent=None if is_ascii else 1))
        for name, arguments, is_ascii in made
    ]
    written = [
        ToolCall(id="", function=FunctionCall(name=name, arguments=arguments)) for name, arguments in expected
    ]
    answer = text + (write_calls(written) if written else "")
    places = [0, *sorted(min(cut, len(answer)) for cut in cuts), len(answer)]
    reader, content, pieces = CallReader(), "", list[CallPiece]()
    for start, end in pairwise(places):
        more, new = reader.push(answer[start:end])
        # OpenAI's client lost the first of two entries with one index in a chunk, and saw a call too many.
        assert len({piece.index for piece in new}) == len(new)
        content += more
        pieces += new
    assert content + reader.flush() == text
    read = join_calls(pieces)
    assert [(call.function.name, call.function.arguments) for call in read] == expected
    assert reader.ends_with_call == bool(expected)
    assert len({call.id for call in read}) == len(read)


@given(st.integers(0, len(CALL_BEGIN) - 1))
def test_a_forced_call_that_was_cut_leaves_no_text(length: int) -> None:
    reader = CallReader(is_forced=True)
    assert reader.push(CALL_BEGIN[:length]) == ("", [])
    assert reader.flush() == ""
