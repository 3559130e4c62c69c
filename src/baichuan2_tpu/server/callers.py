"""A request's preparation in a thread, which is told when the request's client leaves.

Not here: the end of an answer when its client leaves (``api.event_stream``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request

from baichuan2_tpu.generate.caller import Caller
from baichuan2_tpu.server.tenants import current_tenant

__all__ = ["CallerThreads", "current_caller"]

_NOBODY = Caller()
current_caller: ContextVar[Caller] = ContextVar("current_caller", default=_NOBODY)
"""Who asks for what the current thread does."""

_SCHEMAS_S = 4
"""Processor time for all schemas of a request, such as those of its tools."""

_Arguments = ParamSpec("_Arguments")
_Value = TypeVar("_Value")


class CallerThreads:
    """Threads of their own for what may wait for its turn, so that nothing else waits for them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limiter: CapacityLimiter | None = None  # belongs to an event loop

    async def run(
        self,
        request: Request,
        work: Callable[_Arguments, _Value],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Value:
        """Run some work in a thread, whose ``current_caller`` leaves when the client disconnects.

        Raises: what the work raises.
        """
        client = request.client.host if request.client else ""
        tenant = current_tenant.get()
        caller = Caller(tenant, f"{tenant} {client}", _SCHEMAS_S)

        def work_for_caller() -> _Value:
            current_caller.set(caller)
            return work(*args, **kwargs)

        self._limiter = self._limiter or CapacityLimiter(self._most)
        leaving = asyncio.ensure_future(_leave_with_client(caller, request))
        try:
            return await to_thread.run_sync(work_for_caller, limiter=self._limiter)
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)


async def _leave_with_client(caller: Caller, request: Request) -> None:
    try:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    finally:  # also where the server ends
        caller.leave()
