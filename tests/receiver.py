"""A receiver of webhooks on 127.0.0.1, which believes only what an independent library verifies."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks.webhooks import Webhook


@dataclass
class Receiver:
    """What came, by job: the bodies of verified deliveries by their ``webhook-id``, and how often
    each came."""

    secret: str
    url: str = ""
    bodies: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    times: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    refused: list[str] = field(default_factory=list)

    def take(self, body: bytes, headers: dict[str, str]) -> int:
        try:
            event = Webhook(self.secret).verify(body.decode(), headers)
        except Exception as error:
            self.refused.append(repr(error))
            return 400
        self.bodies[event["data"]["job_id"]][headers["webhook-id"]] = event
        self.times[headers["webhook-id"]] += 1
        return 204


@contextmanager
def receiving(secret: str) -> Iterator[Receiver]:
    receiver = Receiver(secret)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(
                receiver.take(body, {key.lower(): value for key, value in self.headers.items()})
            )
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
