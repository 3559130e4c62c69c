"""Requests as ordinary clients send them, each answered or refused as is right for it."""

from __future__ import annotations

from collections.abc import Generator

import httpx
import pytest

from clients.acting_server import acting_server
from clients.variants import VARIANTS, Variant, judge, send
from running.served import MODEL


@pytest.fixture(scope="module")
def client() -> Generator[httpx.Client, None, None]:
    with acting_server() as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_variant_is_answered_or_refused_as_is_right(variant: Variant, client: httpx.Client) -> None:
    response = send(client, variant, MODEL)
    assert judge(variant, response.status_code, response.content), (response.status_code, response.text)
