"""``python -m benchmarks.raw_sender``: sends a request at a rate, and reports the answers.

It reads a JSON object from standard input (``host``, ``port``, ``requests`` as base64, ``rate``,
``seconds``, ``connections``) and prints one with the statuses and the seconds of refusals. It
speaks HTTP/1.1 over sockets in a process of its own: a client library would take more of the
machine's time than the server that it measures.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections import Counter
from typing import Any

UNSENT = "unsent"
"""Requests for which no connection was free."""
BROKEN = "0"


class Sender:
    def __init__(self, host: str, port: int, requests: list[bytes], connections: int) -> None:
        self._host, self._port = host, port
        self._requests = requests
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None] = []
        self._free += [None] * connections
        self.statuses: Counter[str] = Counter()
        self.refusal_s: list[float] = []

    async def run(self, rate: float, seconds: float) -> None:
        """Send ``rate`` requests a second; with a rate of 0, one after the other on each
        connection."""
        end = time.perf_counter() + seconds
        async with asyncio.TaskGroup() as group:
            if not rate:
                for number in range(len(self._free)):
                    group.create_task(self._repeat(number, end))
                return
            due = time.perf_counter()
            number = 0
            while due < end:
                if self._free:
                    group.create_task(self._send(number))
                else:
                    self.statuses[UNSENT] += 1
                number += 1
                due += 1 / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))

    async def _repeat(self, number: int, end: float) -> None:
        while time.perf_counter() < end:
            await self._send(number)

    async def _send(self, number: int) -> None:
        connection = self._free.pop()
        started = time.perf_counter()
        try:
            if connection is None:
                connection = await asyncio.open_connection(self._host, self._port)
            status = await self._exchange(*connection, self._requests[number % len(self._requests)])
        except (OSError, asyncio.IncompleteReadError):
            self.statuses[BROKEN] += 1
            connection = None
        else:
            self.statuses[str(status)] += 1
            if status != 200:
                self.refusal_s.append(time.perf_counter() - started)
        self._free.append(connection)

    @staticmethod
    async def _exchange(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> int:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        _, _, rest = head.partition(b"content-length:")
        await reader.readexactly(int(rest.split(b"\r\n")[0]))
        return int(head.split(None, 2)[1])


async def main(settings: dict[str, Any]) -> None:
    requests = [base64.b64decode(request) for request in settings["requests"]]
    sender = Sender(settings["host"], settings["port"], requests, settings["connections"])
    await sender.run(settings["rate"], settings["seconds"])
    print(json.dumps({"statuses": sender.statuses, "refusal_s": sender.refusal_s}))


if __name__ == "__main__":
    asyncio.run(main(json.load(sys.stdin)))
