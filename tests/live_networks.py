"""Live video over networks that lose packets, or that go away; prints what became of the sessions
as JSON.

``python -m tests.live_networks FOLDER`` runs in the server's network namespace. The variables
``NETWORK_…`` name it and those of the clients (:mod:`tests.cluster.networks`).
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import cv2
import httpx
import psutil
import ray
import websockets
from ray import serve

from deployments.app import build_graph
from deployments.realtime import Realtime
from raylens.core.ledger import Budget
from testing.timed_graph import TimedModel
from testing.webrtc_client import Client, draw_number, wait_until
from tests.cluster.networks import DOOMED, LOSSY, SERVER, Networks, cut, lost_packets

T = TypeVar("T")
REALTIME = "ServeReplica:raylens:Realtime"
MODEL = "timed"
MODEL_S = 0.1
BATCH = 16
KEY = "rl_0123456789abcdef0123456789abcdef"
PORT = 8000
SESSIONS = 2
"""That the key may have: one viewer's. A place that is left behind leaves none for the next."""
PLACES = Budget("camera", "sessions", SESSIONS)
FPS = 15
LOSSY_S = 20.0
PATIENCE_S = 90.0
CONNECT_S = 41.0
"""A little more than the server allows for it."""
REST_S = 2.0
GONE_S = 120.0
"""The longest that a client that is gone can have its sessions."""
OFFER = "/api/v1/webrtc/offer"
AGAIN = (408, 429)
"""Statuses of an offer that may be repeated: it came too slowly, or the dead session's place is not
free yet."""
CLONE_NEWNET = 0x40000000


class CountedRealtime(Realtime):
    """Counts what its sessions need."""

    async def count(self) -> dict[str, int]:
        tasks = Counter(_name(task) for task in asyncio.all_tasks())
        return {"sessions": len(self._sessions.states), **tasks}


def _name(task: asyncio.Task[Any]) -> str:
    return f"task {getattr(task.get_coro(), '__qualname__', 'unknown')}"


class Place:
    """A network namespace, and an event loop whose sockets are there."""

    def __init__(self, network: str) -> None:
        self._network = network
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, daemon=True).start()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _run(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{self._network}") as file:
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        self._loop.run_forever()


class Viewer:
    """A client with a session over WebRTC and another one over a WebSocket."""

    def __init__(self, server: str, address: str) -> None:
        self._address = address
        url = f"{server}:{PORT}"
        self._socket_url = f"ws://{url}/api/v1/ws"
        self._http = httpx.AsyncClient(
            base_url=f"http://{url}", headers={"X-API-Key": KEY}, timeout=PATIENCE_S
        )
        self.shown = self.answers = self.offers = 0

    async def open(self) -> None:
        headers = {"X-API-Key": KEY}
        self._socket = await websockets.connect(
            self._socket_url, additional_headers=headers, open_timeout=PATIENCE_S, ping_timeout=None
        )
        self._reading = asyncio.create_task(self._read())
        await self.offer()

    async def offer(self) -> None:
        """Open a WebRTC session. On a bad network, not every offer leads to a connection."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self._connects():
                await self._client.close()

    async def _connects(self) -> bool:
        self.offers += 1
        self._client = Client()
        parameters = {"feature": "caption", "inference_interval": 1}
        offer = await self._client.offer((self._address,))
        body = {"sdp": offer, "initialParameters": parameters}
        answer = await self._http.post(OFFER, json=body)
        if answer.status_code in AGAIN:
            await asyncio.sleep(float(answer.headers.get("Retry-After", "1")))
            return False
        assert answer.status_code == 200, answer.text
        self.session_id = str(answer.json()["sessionId"])
        await self._client.accept(answer.json()["sdp"])
        with suppress(TimeoutError):
            await self._client.wait_connected(CONNECT_S)
            return True
        return False

    async def watch(self, seconds: float) -> None:
        """Show frames to both sessions."""
        started_at = time.monotonic()
        frames = round(seconds * FPS)
        for number in range(frames):
            await asyncio.sleep(max(0.0, started_at + number / FPS - time.monotonic()))
            pixels = draw_number(number)
            self._client.camera.show(pixels)
            await self._socket.send(cv2.imencode(".jpg", pixels)[1].tobytes())
        self.shown += frames
        await wait_until(lambda: self.results and self.answers, PATIENCE_S)

    async def _read(self) -> None:
        with suppress(websockets.ConnectionClosed):
            async for text in self._socket:
                self.answers += "age_ms" in json.loads(text)

    @property
    def frames(self) -> int:
        return len(self._client.frames)

    @property
    def results(self) -> int:
        return len(self._client.received("results", "result"))

    async def close(self) -> None:
        await self._http.delete(f"{OFFER}/{self.session_id}")
        await self._client.close()
        await self._socket.close()
        await self._reading
        await self._http.aclose()

    async def vanish(self) -> None:
        """Leave without a word: the network is cut."""
        self._socket.transport.abort()
        self._client.vanish()
        await self._http.aclose()

    async def see_end(self) -> str:
        """Wait until the WebRTC session is over for the client, and return its state."""
        connection = self._client.connection
        states = ("closed", "failed")
        await wait_until(lambda: connection.connectionState in states, GONE_S)
        return connection.connectionState

    async def state(self) -> httpx.Response:
        return await self._http.get(f"{OFFER}/{self.session_id}")

    async def leave_dead_session(self) -> None:
        await self._client.close()


def count_descriptors(process: psutil.Process) -> int:
    """Return how many a process has, without connections on loopback: Ray's, which it opens when
    it needs them."""
    connections = process.net_connections("tcp")
    return process.num_fds() - sum("127.0.0.1" in each.laddr.ip for each in connections)


class Census:
    """What sessions need on the server: tasks, a key's places, slots and file descriptors."""

    async def take(self) -> Counter[str]:
        realtime = serve.get_deployment_handle("Realtime", "raylens")
        model = serve.get_deployment_handle(MODEL, "raylens")
        counts: Counter[str] = Counter(await realtime.count.remote())
        load = await model.record_autoscaling_stats.remote()
        ingress = serve.get_deployment_handle("Ingress", "raylens")
        places = await ingress.ledger.remote("hold", PLACES, "census", 0, 0)
        counts["slots"] = round(BATCH * sum(load.values()))
        counts["places"] = SESSIONS - round(places.left)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess, IndexError):
                title = process.cmdline()[0]
                if title.startswith(("ray::ServeReplica", "ray::Proxy")):
                    counts[f"descriptors of {title}"] += count_descriptors(process)
        return counts

    async def rest(self) -> Counter[str]:
        """Return what there is as soon as it stays the same."""
        before, counts = None, await self.take()
        while counts != before:
            await asyncio.sleep(REST_S)
            before, counts = counts, await self.take()
        return counts

    async def settle(self, before: Counter[str], new: str = "none") -> dict[str, Any]:
        """Wait until there is nothing more than before. Return what is left, and for how many
        seconds other things were. The descriptors of a new process can't be compared."""
        started_at = time.monotonic()
        seconds: dict[str, float] = {}
        while True:
            more = await self.take() - before
            left = {name: count for name, count in more.items() if new not in name}
            passed = round(time.monotonic() - started_at, 1)
            if not left or passed > GONE_S:
                return {"left": left, "seconds": seconds}
            seconds |= dict.fromkeys(left, passed)
            await asyncio.sleep(0.5)


async def lossy(place: Place, network: str, census: Census, before: Counter[str]) -> Any:
    viewer = Viewer(SERVER.format(1), LOSSY)
    await place.run(viewer.open())
    await place.run(viewer.watch(LOSSY_S))
    report = {
        "offers": viewer.offers,
        "shown": viewer.shown,
        "frames": viewer.frames,
        "results": viewer.results,
        "answers": viewer.answers,
        "lost_packets": lost_packets(network),
    }
    await place.run(viewer.close())
    import sys

    print(report, file=sys.stderr)
    return {**report, **await census.settle(before)}


async def vanished(place: Place, network: str, census: Census, before: Counter[str]) -> Any:
    viewer = Viewer(SERVER.format(2), DOOMED)
    await place.run(viewer.open())
    await place.run(viewer.watch(1.0))
    cut(network)
    await place.run(viewer.vanish())
    rest = await census.settle(before)
    async with httpx.AsyncClient(headers={"X-API-Key": KEY}) as http:
        url = f"http://127.0.0.1:{PORT}{OFFER}/{viewer.session_id}"
        state = (await http.get(url)).json()
    return {"state": state, **rest}


async def killed(place: Place, census: Census, before: Counter[str]) -> Any:
    viewer = Viewer(SERVER.format(2), DOOMED)
    await place.run(viewer.open())
    await place.run(viewer.watch(1.0))
    (replica,) = (
        process
        for process in psutil.Process().children(recursive=True)
        if REALTIME in "".join(process.cmdline()[:1])
    )
    replica.kill()
    replica.wait(10)
    started_at = time.monotonic()
    state = await place.run(viewer.state())
    told_s = round(time.monotonic() - started_at, 1)
    client = await place.run(viewer.see_end())
    seen_s = round(time.monotonic() - started_at, 1)
    await place.run(viewer.leave_dead_session())
    await place.run(viewer.offer())
    await place.run(viewer.watch(3.0))
    results_again = viewer.results
    await place.run(viewer.close())
    return {
        "status": state.status_code,
        "detail": state.json()["detail"],
        "told_s": told_s,
        "client": client,
        "seen_s": seen_s,
        "results_again": results_again,
        **await census.settle(before, REALTIME),
    }


async def look(place: Place, census: Census) -> Counter[str]:
    """Have sessions on a good network, and return what there is after them: what a process loads
    with its first sessions stays."""
    for _ in range(2):
        viewer = Viewer(SERVER.format(2), DOOMED)
        await place.run(viewer.open())
        await place.run(viewer.watch(1.0))
        await place.run(viewer.close())
    return await census.rest()


async def run(networks: Networks) -> dict[str, Any]:
    census = Census()
    there, away = Place(networks.lossy), Place(networks.doomed)
    before = await look(away, census)
    report = {"lossy": await lossy(there, networks.lossy, census, before)}
    note(report)
    report["killed"] = await killed(away, census, before)
    note(report)
    before = await look(away, census)
    report["vanished"] = await vanished(away, networks.doomed, census, before)
    return report


def settings() -> dict[str, Any]:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    key = {"name": PLACES.client, "hash": f"sha256:{digest}", "limits": {"max_sessions": SESSIONS}}
    model = {
        "name": MODEL,
        "family": "smolvlm",
        "checkpoint": str(MODEL_S),
        "max_batch_size": BATCH,
    }
    return {
        "models": [model],
        "jobs": {"enabled": False},
        "auth": {"keys": [key]},
        "realtime": {"webrtc": {"addresses": ["10.77.0.0/16"]}},
    }


def note(report: dict[str, Any]) -> None:
    print(json.dumps(report), file=sys.stderr, flush=True)


def main() -> None:
    names = ("server", "lossy", "doomed")
    networks = Networks(*(os.environ[f"NETWORK_{name.upper()}"] for name in names))
    ray.init(address="local", num_cpus=4, log_to_driver=False, include_dashboard=False)
    serve.start(http_options={"host": "0.0.0.0", "port": PORT})
    serve.run(build_graph(settings(), TimedModel, CountedRealtime), name="raylens")
    print(json.dumps(asyncio.run(run(networks))))
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
