"""Responses that are kept in memory for ``previous_response_id``, each with all that the model read for it.

Their number and bytes are bounded. A response has its whole conversation, so that none depends on another
that may be evicted; items that two of them have in common are counted in both, and lie in memory once.
Whoever uses the server finds only what was stored with the same key. Nothing is written to a disk.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from baichuan2_tpu.quoting import quote
from baichuan2_tpu.server.errors import ApiError

__all__ = ["ResponseStore", "StoreLimits", "StoredItem", "StoredResponse"]

_OVERHEAD_BYTES = 256
"""What an item or a response takes in memory besides its text, as measured with tracemalloc, rounded up."""


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How many responses are kept, and how many bytes they and one conversation may take."""

    responses: int
    bytes: int
    conversation_bytes: int


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item of a conversation: its id, and its JSON."""

    id: str
    content: bytes

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return len(self.content) + len(self.id) + _OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as JSON, and the items of its conversation: those that it answers, then its own."""

    id: str
    content: bytes
    items: tuple[StoredItem, ...]
    input_count: int

    @property
    def input_items(self) -> Sequence[StoredItem]:
        """The items that were answered."""
        return self.items[: self.input_count]

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return len(self.content) + _OVERHEAD_BYTES + sum(item.size_bytes for item in self.items)


class _Shelf:
    """The responses of one key's holder, the least recently used first."""

    def __init__(self) -> None:
        self.responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self.size_bytes = 0
        self.items: dict[str, StoredItem] = {}
        self._uses: Counter[str] = Counter()

    def put(self, response: StoredResponse) -> None:
        self.responses[response.id] = response
        self.size_bytes += response.size_bytes
        self.items |= {item.id: item for item in response.items}
        self._uses.update(item.id for item in response.items)

    def remove(self, response_id: str) -> None:
        response = self.responses.pop(response_id)
        self.size_bytes -= response.size_bytes
        for item in response.items:
            self._uses[item.id] -= 1
            if not self._uses[item.id]:
                del self._uses[item.id], self.items[item.id]


class ResponseStore:
    """Keeps the responses of all keys' holders; from any thread.

    Where there are too many, the holder that takes the most memory loses the least recently used one: nobody
    can push out what others have stored.
    """

    def __init__(self, limits: StoreLimits) -> None:
        self.limits = limits
        self._shelves: dict[str, _Shelf] = {}
        self._lock = Lock()

    def can_keep(self, response: StoredResponse) -> bool:
        """Tell whether a response is within the limits alone."""
        return self.limits.responses > 0 and response.size_bytes <= self.limits.bytes

    def put(self, holder: str, response: StoredResponse) -> None:
        """Keep a response that can be kept, and evict others for it."""
        with self._lock:
            self._shelves.setdefault(holder, _Shelf()).put(response)
            while self._is_too_full():
                self._evict()

    def get(self, holder: str, response_id: str) -> StoredResponse:
        """Return a response. Raises: ApiError with status 404."""
        with self._lock:
            shelf = self._shelves.get(holder)
            if shelf is None or response_id not in shelf.responses:
                raise self._unknown(response_id)
            shelf.responses.move_to_end(response_id)
            return shelf.responses[response_id]

    def delete(self, holder: str, response_id: str) -> None:
        """Forget a response. Raises: ApiError with status 404."""
        with self._lock:
            shelf = self._shelves.get(holder)
            if shelf is None or response_id not in shelf.responses:
                raise self._unknown(response_id)
            self._remove(holder, response_id)

    def item(self, holder: str, item_id: str) -> StoredItem | None:
        """Return an item of any response that is kept."""
        with self._lock:
            shelf = self._shelves.get(holder)
            return None if shelf is None else shelf.items.get(item_id)

    def _is_too_full(self) -> bool:
        count = sum(len(shelf.responses) for shelf in self._shelves.values())
        size_bytes = sum(shelf.size_bytes for shelf in self._shelves.values())
        return count > self.limits.responses or size_bytes > self.limits.bytes

    def _evict(self) -> None:
        holder = max(self._shelves, key=lambda name: self._shelves[name].size_bytes)
        self._remove(holder, next(iter(self._shelves[holder].responses)))

    def _remove(self, holder: str, response_id: str) -> None:
        self._shelves[holder].remove(response_id)
        if not self._shelves[holder].responses:
            del self._shelves[holder]

    def _unknown(self, response_id: str) -> ApiError:
        kept = self.limits.responses
        rule = f"keeps the last {kept}" if kept else "stores none (--stored-responses 0)"
        return ApiError(
            f"the response {quote(response_id)} is not stored (any more): the server {rule}; "
            "send the whole input",
            status=404,
            param="response_id",
            code="response_not_found",
        )
