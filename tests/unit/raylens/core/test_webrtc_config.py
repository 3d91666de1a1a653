"""Settings of WebRTC sessions."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from raylens.core.webrtc_config import WebRtcConfig


def test_one_url_need_not_be_a_list() -> None:
    config = WebRtcConfig.model_validate({"ice_servers": [{"urls": "stun:stun.example.com"}]})
    assert config.ice_servers[0].urls == ("stun:stun.example.com",)
    assert not config.ice_servers[0].is_turn


@pytest.mark.parametrize(
    "url", ["turn:t.example.com:3478?transport=tcp", "turns:t.example.com", "turn:10.0.0.1"]
)
def test_turn_runs_over_udp_tcp_and_tls(url: str) -> None:
    server = {"urls": [url], "username": "me", "credential": "secret"}
    assert WebRtcConfig.model_validate({"ice_servers": [server]}).ice_servers[0].is_turn


def test_ports_are_a_range() -> None:
    assert WebRtcConfig(udp_ports="50000-50199").port_range == (50000, 50199)
    assert WebRtcConfig().port_range == (0, 0)


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"addresses": ["nowhere"]}, "addresses.0"),
        ({"addresses": ["10.0.0.0/99"]}, "addresses.0"),
        ({"public_address": "example.com"}, "public_address"),
        ({"udp_ports": "9-5"}, ""),
        ({"udp_ports": "1-70000"}, ""),
        ({"udp_ports": "5000"}, "udp_ports"),
        ({"ice_servers": [{"urls": []}]}, "ice_servers.0.urls"),
        ({"ice_servers": [{"urls": "http://stun"}]}, "ice_servers.0.urls.0"),
        ({"ice_servers": [{"urls": "stun:h?transport=udp"}]}, "ice_servers.0.urls.0"),
        ({"ice_servers": [{"urls": "turns:h?transport=udp"}]}, "ice_servers.0.urls.0"),
        ({"ice_servers": [{"urls": ["stun:h", "turn:h"]}]}, "ice_servers.0"),
        ({"ice_servers": [{"urls": "turn:h", "username": "me"}]}, "ice_servers.0"),
        ({"max_bitrates": 1}, "max_bitrates"),
    ],
)
def test_an_error_names_the_setting(settings: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        WebRtcConfig.model_validate(settings)
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [place]
