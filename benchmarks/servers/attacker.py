"""A client that sends only attacks, and a watch over the server's readiness meanwhile.

Not here: the attacks (``attacks``), the other clients (``serve_load``).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from servers.attacks import Attack, all_attacks

__all__ = ["Siege", "attack", "watch_readiness"]

_PATIENCE_S = 20
_OPEN_S = 2
"""How long a connection that sends no more is held."""


@dataclass(slots=True)
class Siege:
    """What became of the attacks, by status, and of the questions whether the server is ready.

    Units: ``longest_s`` is the longest wait of either.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    readiness: Counter[str] = field(default_factory=Counter)
    longest_attack_s: float = 0
    longest_readiness_s: float = 0

    @property
    def faults(self) -> list[str]:
        """Everything that must not happen: a fault of the server, or one that is not ready."""
        failed = self.statuses["500"]
        faults = [f"{failed} attacks got the status 500"] if failed else []
        bad = {answer: count for answer, count in self.readiness.items() if answer != "ok"}
        return faults + ([f"the server was not ready: {bad}"] if bad else [])


async def attack(url: str, end_s: float, siege: Siege, seed: int) -> None:
    """Send every attack in turn, in an order that changes, until the time is over."""
    chance = random.Random(seed)
    place = urlsplit(url)
    while time.perf_counter() < end_s:
        attacks = all_attacks()
        chance.shuffle(attacks)
        for each in attacks:
            if time.perf_counter() >= end_s:
                return
            start_s = time.perf_counter()
            siege.statuses[await _send(each, place.hostname or "", place.port or 0)] += 1
            siege.longest_attack_s = max(siege.longest_attack_s, time.perf_counter() - start_s)


async def _send(each: Attack, host: str, port: int) -> str:
    """Send one attack and return the status of its answer."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        patience_s = _OPEN_S if each.is_open else _PATIENCE_S
        head = await asyncio.wait_for(_exchange(reader, writer, each), patience_s)
    except asyncio.TimeoutError:
        return "left"
    except OSError:
        return "reset"
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return head[9:12].decode("latin1") or "closed"


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, each: Attack) -> bytes:
    writer.write(each.content)
    with suppress(OSError):  # the server may refuse before it has read everything
        await writer.drain()
    head = await reader.read(65536)
    while await reader.read(65536) and b"onnection: close" in each.content:
        pass
    return head


async def watch_readiness(url: str, end_s: float, siege: Siege) -> None:
    """Ask every second whether the server is ready."""
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        while time.perf_counter() < end_s:
            start_s = time.perf_counter()
            try:
                answer = str((await client.get("/health/ready")).json()["status"])
            except httpx.HTTPError as error:
                answer = type(error).__name__
            siege.readiness[answer] += 1
            siege.longest_readiness_s = max(siege.longest_readiness_s, time.perf_counter() - start_s)
            await asyncio.sleep(1)
