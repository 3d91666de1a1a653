"""Settings of WebRTC sessions: addresses, ICE servers and limits."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

_ICE_URL = re.compile(
    r"(?P<scheme>stuns?|turns?):[A-Za-z0-9._-]+(:[0-9]{1,5})?(\?transport=(?P<transport>udp|tcp))?"
)
_PORTS = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def _check_ice_url(url: str) -> str:
    match = _ICE_URL.fullmatch(url)
    if match is None:
        raise ValueError("expected stun:HOST, turn:HOST:PORT?transport=udp or turns:HOST")
    if match["transport"] and match["scheme"].startswith("stun"):
        raise ValueError("a STUN URL has no transport")
    if match["scheme"] == "turns" and match["transport"] == "udp":
        raise ValueError("turns: runs over TCP; leave transport out")
    return url


def _check_address(text: str) -> str:
    return str(ip_address(text))


def _check_address_or_network(text: str) -> str:
    return str(ip_network(text)) if "/" in text else str(ip_address(text))


def _as_list(urls: Any) -> Any:
    return [urls] if isinstance(urls, str) else urls


IceUrl = Annotated[str, AfterValidator(_check_ice_url)]


class IceServer(_Frozen):
    """A STUN or TURN server, in the form that browsers take."""

    urls: Annotated[tuple[IceUrl, ...], BeforeValidator(_as_list), Field(min_length=1)]
    """``stun:HOST:PORT``, ``turn:HOST:PORT?transport=udp`` (or ``tcp``), or ``turns:HOST:PORT`` for
    TLS. One URL need not be a list."""
    username: str = ""
    credential: str = ""
    """Every client sees the username and the credential. A secret that clients must not see is in
    the environment (``turn_secret_env``)."""

    @property
    def is_turn(self) -> bool:
        return self.urls[0].startswith("turn")

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if len({url.startswith("turn") for url in self.urls}) > 1:
            raise ValueError("urls: STUN and TURN are servers of their own; list each by itself")
        if bool(self.username) != bool(self.credential):
            raise ValueError("credential: expected with username, and the other way round")
        return self


class WebRtcConfig(_Frozen):
    """WebRTC sessions of one process."""

    addresses: tuple[Annotated[str, AfterValidator(_check_address_or_network)], ...] = ()
    """Addresses of this machine on which sessions listen, or networks (``10.0.0.0/8``) that contain
    them. Empty means the address on which the server listens."""
    udp_ports: Annotated[str, Field(pattern=_PORTS)] | None = None
    """The range of UDP ports, such as ``50000-50199``. A session takes one port of each address.
    Unset means any free port."""
    public_address: Annotated[str, AfterValidator(_check_address)] | None = None
    """The address that clients are told instead of this machine's, if it is behind a NAT that maps
    each port to the same port."""
    ice_servers: tuple[IceServer, ...] = ()
    """STUN and TURN servers for the clients. The server itself uses the first of each kind."""
    turn_secret_env: str = "RAYLENS_TURN_SECRET"
    """The environment variable with the secret that the TURN servers share with this one. With it,
    each client gets a credential of its own, which expires (``use-auth-secret`` of coturn)."""
    turn_ttl_s: Annotated[int, Field(ge=60, le=7 * 86_400)] = 86_400
    """How long such a credential is valid, in seconds."""
    resolve_mdns: bool = False
    """Whether to look up names ending in ``.local``, by which browsers hide their addresses. It
    opens UDP port 5353 on every interface, and is rarely needed: the browser connects to the
    server, which then learns its address."""
    max_bitrate: Annotated[int, Field(ge=100_000, le=100_000_000)] = 4_000_000
    """Bits per second of the annotated video at 1280×720. Other sizes get more or less, by their
    pixels. A client on a slower network gets what the network carries."""
    max_pixels: Annotated[int, Field(ge=64 * 64, le=9_000_000)] = 1920 * 1080
    """Of a frame. Larger frames are scaled down."""
    max_fps: Annotated[float, Field(gt=0, le=120)] = 30.0
    """Frames per second that are processed. The rest are dropped."""
    max_sessions: PositiveInt = 16
    """Sessions of one process; more are refused as overloaded."""
    max_sessions_per_client: PositiveInt = 4
    """Of these, of one client."""
    connect_timeout_s: PositiveFloat = 40.0
    """From the answer until media can flow."""
    idle_timeout_s: PositiveFloat = 30.0
    """A session ends if no frame has arrived for this time."""

    @model_validator(mode="after")
    def _ports_are_a_range(self) -> Self:
        if self.udp_ports is not None:
            first, last = self.port_range
            if not 0 < first <= last < 2**16:
                raise ValueError("udp_ports: expected FIRST-LAST, from 1 to 65535")
        return self

    @property
    def port_range(self) -> tuple[int, int]:
        """The first and the last UDP port; zeros mean any."""
        match = _PORTS.fullmatch(self.udp_ports or "0-0")
        assert match is not None
        return int(match[1]), int(match[2])
