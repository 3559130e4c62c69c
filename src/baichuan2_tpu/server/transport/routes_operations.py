"""``/health`` and ``/metrics``, for supervisors and Prometheus.

Not here: the numbers (``server.metrics``).
"""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from baichuan2_tpu.server.errors import DOCUMENTED, Output
from baichuan2_tpu.server.service import Service

__all__ = ["operation_routes"]

_WAIT_S = 2
"""Time that an answer waits for the proof that it is right; then it says what is known."""
_LOOK_S = 0.01


class Health(Output):
    """Whether the server runs, or is ready for requests."""

    status: Literal["ok", "faulty", "stopping"]


_NOT_READY: dict[int | str, dict[str, object]] = {
    503: {"model": Health, "description": "The server cannot answer now"}
}


def operation_routes(service: Service) -> APIRouter:
    """Return the routes for operators of the server."""
    router = APIRouter(tags=["operations"])

    @router.get("/health/live")
    async def live() -> Health:
        """Report that the server runs."""
        return Health(status="ok")

    @router.get("/health", responses=_NOT_READY)
    @router.get("/health/ready", response_model=Health, responses=_NOT_READY)
    async def ready() -> Response:
        """Report whether the server can answer: 503 while it shuts down, or while a part fails or hangs.

        Every part is used for it, unless that was done some seconds ago.
        """
        proof = service.readiness.begin()
        end_s = time.monotonic() + _WAIT_S
        while not proof.is_set() and time.monotonic() < end_s:
            await asyncio.sleep(_LOOK_S)
        health = Health(status=service.health)
        status = 200 if health.status == "ok" else 503
        return Response(health.model_dump_json(), status, media_type="application/json")

    @router.get("/metrics", response_class=Response, responses={401: DOCUMENTED[401]})
    def metrics() -> Response:
        """Return counts and times in Prometheus's text format."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router
