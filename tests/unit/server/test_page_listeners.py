import asyncio
from types import SimpleNamespace
from typing import cast

import pytest
from gradio.queueing import Queue
from starlette.types import Message, Receive, Scope, Send

from baichuan2_tpu.server.page.gradio_guards import LISTEN_PATH, Listeners, ListenerWatch, QueuePace


def scope(path: str, session: str, name: str = "") -> Scope:
    query = f"session_hash={session}".encode()
    return {"type": "http", "path": path, "query_string": query, "headers": [], "name": name}


async def never() -> Message:
    raise AssertionError


async def nowhere(_message: Message) -> None:
    raise AssertionError


def test_a_page_is_heard_from_the_first_to_the_last_of_its_streams() -> None:
    listeners = Listeners()
    ends = {name: asyncio.Event() for name in ("first", "second")}

    async def listen(own: Scope, _receive: Receive, _send: Send) -> None:
        await ends[own["name"]].wait()

    async def two() -> None:
        watch = ListenerWatch(listen, listeners)
        streams = [
            asyncio.ensure_future(watch(scope(LISTEN_PATH, "s", name), never, nowhere)) for name in ends
        ]
        await asyncio.sleep(0)
        assert listeners.has("s")
        assert not listeners.has("t")
        ends["first"].set()
        await streams[0]
        assert listeners.has("s")
        ends["second"].set()
        await streams[1]
        assert not listeners.has("s")

    asyncio.run(two())


@pytest.mark.parametrize(("path", "is_listening"), [(LISTEN_PATH, True), ("/config", False)])
def test_only_the_stream_of_events_counts_and_a_fault_ends_it(path: str, is_listening: bool) -> None:
    listeners = Listeners()

    async def fail(_scope: Scope, _receive: Receive, _send: Send) -> None:
        assert listeners.has("s") is is_listening
        raise EOFError

    with pytest.raises(EOFError):
        asyncio.run(ListenerWatch(fail, listeners)(scope(path, "s"), never, nowhere))
    assert not listeners.has("s")


def test_gradio_looks_at_its_queue_seldom_while_no_page_is_open() -> None:
    # It looked a thousand times per second, which took 4 % of a core with the page open to nobody.
    queue = cast("Queue", SimpleNamespace(sleep_when_free=0.001, progress_update_sleep_when_free=0.01))
    looks: list[float] = []

    async def ask(_scope: Scope, _receive: Receive, _send: Send) -> None:
        looks.append(queue.sleep_when_free)

    pace = QueuePace(ask, queue)
    idle = queue.sleep_when_free
    assert idle >= 1
    assert queue.progress_update_sleep_when_free >= 1
    asyncio.run(pace(scope("/gradio_api/heartbeat/s", "s"), never, nowhere))
    assert looks[0] <= 0.1
    assert queue.sleep_when_free == idle
