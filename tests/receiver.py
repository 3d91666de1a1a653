"""A webhook receiver on 127.0.0.1 that verifies each delivery with an independent library."""

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
    """The deliveries that arrived."""

    secret: str
    url: str = ""
    bodies: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    """Bodies of verified deliveries, by job id and then by ``webhook-id``."""
    times: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """How often each ``webhook-id`` arrived."""
    refused: list[str] = field(default_factory=list)
    """Errors of deliveries whose verification failed."""

    def receive(self, body: bytes, headers: dict[str, str]) -> int:
        """Verify and record a delivery, and return the status to answer with."""
        try:
            event = Webhook(self.secret).verify(body.decode(), headers)
        except Exception as error:
            self.refused.append(repr(error))
            return 400
        self.bodies[event["data"]["job_id"]][headers["webhook-id"]] = event
        self.times[headers["webhook-id"]] += 1
        return 204


@contextmanager
def run_receiver(secret: str) -> Iterator[Receiver]:
    """Run a receiver whose deliveries must be signed with ``secret``."""
    receiver = Receiver(secret)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.send_response(receiver.receive(body, headers))
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
