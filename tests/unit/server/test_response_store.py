"""Stored responses: bounded by number and bytes, and nobody's but their key's."""

import pytest

from baichuan2_tpu.server.api.responses.store import (
    ResponseStore,
    StoredItem,
    StoredResponse,
    StoreLimits,
)
from baichuan2_tpu.server.errors import ApiError


def store_of(responses: int = 10, most_bytes: int = 10**6) -> ResponseStore:
    return ResponseStore(StoreLimits(responses, most_bytes, 10**6))


def response(name: str, *item_ids: str, size_bytes: int = 10) -> StoredResponse:
    items = tuple(StoredItem(item_id, b"{}") for item_id in item_ids)
    return StoredResponse(name, b"x" * size_bytes, items, len(items))


def is_stored(store: ResponseStore, holder: str, name: str) -> bool:
    try:
        return store.get(holder, name).id == name
    except ApiError:
        return False


def test_the_least_recently_used_response_is_evicted_beyond_the_number() -> None:
    store = store_of(responses=2)
    for name in ("a", "b"):
        store.put("", response(name))
    store.get("", "a")
    store.put("", response("c"))
    assert [is_stored(store, "", name) for name in "abc"] == [True, False, True]


def test_the_least_recently_used_responses_are_evicted_beyond_the_bytes() -> None:
    store = store_of(most_bytes=1700)
    for name in ("a", "b", "c"):
        store.put("", response(name, size_bytes=100))
    store.put("", response("d", size_bytes=1000))
    assert [is_stored(store, "", name) for name in "abcd"] == [False, False, True, True]


def test_a_conversation_counts_in_every_response_that_has_it() -> None:
    one, two = response("a", "x"), response("b", "x", "y")
    assert two.size_bytes > one.size_bytes > response("c").size_bytes + len(b"{}")


def test_a_response_that_alone_is_too_large_is_not_kept() -> None:
    assert not store_of(most_bytes=500).can_keep(response("a", size_bytes=500))
    assert not store_of(responses=0).can_keep(response("a"))
    assert store_of().can_keep(response("a"))


def test_the_holder_who_takes_the_most_memory_loses_its_own() -> None:
    # One key's holder could push out what all others had stored.
    store = store_of(responses=4)
    store.put("red", response("mine"))
    for number in range(10):
        store.put("blue", response(f"blue-{number}"))
    assert is_stored(store, "red", "mine")
    assert [number for number in range(10) if is_stored(store, "blue", f"blue-{number}")] == [7, 8, 9]


def test_nobody_finds_or_deletes_what_another_key_has_stored() -> None:
    store = store_of()
    store.put("red", response("a", "item"))
    messages = set[str]()
    for holder, name in (("blue", "a"), ("red", "b"), ("", "a")):
        for use in (store.get, store.delete):
            with pytest.raises(ApiError, match="is not stored") as caught:
                use(holder, name)
            assert (caught.value.status, caught.value.code) == (404, "response_not_found")
            messages.add(str(caught.value).replace("'b'", "'a'"))
    assert len(messages) == 1
    assert store.item("blue", "item") is store.item("", "item") is None
    assert store.item("red", "item") is not None


def test_an_item_is_found_while_any_response_has_it() -> None:
    store = store_of()
    store.put("", response("a", "x", "y"))
    store.put("", response("b", "x"))
    store.delete("", "b")
    assert store.item("", "x") is not None
    store.delete("", "a")
    assert store.item("", "x") is store.item("", "y") is None


def test_the_error_says_how_many_are_kept_and_what_to_do() -> None:
    with pytest.raises(ApiError, match=r"the server keeps the last 10; send the whole input$"):
        store_of().get("", "a")
    with pytest.raises(ApiError, match=r"stores none \(--stored-responses 0\); send the whole input$"):
        store_of(responses=0).get("", "a")
