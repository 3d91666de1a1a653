"""ICE servers as browsers and aiortc take them, with credentials that expire."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from typing import Any

from aiortc import RTCIceServer

from raylens.core.webrtc_config import IceServer, WebRtcConfig


def ice_servers_json(config: WebRtcConfig, user: str, now: float) -> list[dict[str, Any]]:
    """Return ``iceServers`` for a browser. ``user`` names the client, and ``now`` is the Unix time.

    If the TURN servers' secret is in the environment, the credentials are made for this client.
    """
    return [
        _to_json(server, *_credentials(server, config, user, now)) for server in config.ice_servers
    ]


def aiortc_servers(config: WebRtcConfig, user: str, now: float) -> list[RTCIceServer]:
    """Return the same for the server's own end of a session."""
    return [
        RTCIceServer(list(server.urls), *_credentials(server, config, user, now))
        for server in config.ice_servers
    ]


def make_credential(secret: str, user: str, expires_at: int) -> tuple[str, str]:
    """Return the username and password that a TURN server with this secret accepts until then.

    The scheme is that of draft-uberti-behave-turn-rest-00.
    """
    username = f"{expires_at}:{user}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode()


def _credentials(
    server: IceServer, config: WebRtcConfig, user: str, now: float
) -> tuple[str | None, str | None]:
    secret = os.environ.get(config.turn_secret_env)
    if not server.is_turn:
        return None, None
    if secret:
        name = re.sub(r"[^A-Za-z0-9_.@-]", "_", user) or "anonymous"
        return make_credential(secret, name, int(now) + config.turn_ttl_s)
    return server.username or None, server.credential or None


def _to_json(server: IceServer, username: str | None, credential: str | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"urls": list(server.urls)}
    if username is not None:
        entry |= {"username": username, "credential": credential}
    return entry
