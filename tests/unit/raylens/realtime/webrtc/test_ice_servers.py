"""ICE servers as clients get them."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest

from raylens.core.webrtc_config import WebRtcConfig
from raylens.realtime.webrtc.ice_servers import aiortc_servers, ice_servers_json

CONFIG = WebRtcConfig.model_validate(
    {
        "ice_servers": [
            {"urls": "stun:stun.example.com"},
            {"urls": ["turn:t.example.com"], "username": "all", "credential": "known"},
        ],
        "turn_secret_env": "TEST_TURN_SECRET",
        "turn_ttl_s": 600,
    }
)


@pytest.fixture(autouse=True)
def _no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_TURN_SECRET", raising=False)


def test_without_a_secret_clients_get_what_is_configured() -> None:
    assert ice_servers_json(CONFIG, "me", 1000.0) == [
        {"urls": ["stun:stun.example.com"]},
        {"urls": ["turn:t.example.com"], "username": "all", "credential": "known"},
    ]


def test_with_a_secret_each_client_gets_a_credential_that_expires(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEST_TURN_SECRET", "north")
    stun, turn = ice_servers_json(CONFIG, "me:1", 1000.9)
    expected = base64.b64encode(hmac.digest(b"north", b"1600:me_1", hashlib.sha1)).decode()
    assert stun == {"urls": ["stun:stun.example.com"]}
    assert turn == {
        "urls": ["turn:t.example.com"],
        "username": "1600:me_1",
        "credential": expected,
    }
    assert ice_servers_json(CONFIG, "you", 1000.9)[1]["credential"] != expected
    own = aiortc_servers(CONFIG, "me:1", 1000.9)[1]
    assert (own.username, own.credential) == ("1600:me_1", expected)


def test_a_known_pair_of_the_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """By OpenSSL: printf 600:user | openssl dgst -sha1 -hmac secret -binary | base64."""
    monkeypatch.setenv("TEST_TURN_SECRET", "secret")
    turn = ice_servers_json(CONFIG, "user", 0.0)[1]
    assert (turn["username"], turn["credential"]) == ("600:user", "OVHRAk4Egm5t2kTtwv6n02ruI94=")
