"""Where a server listens; keeps the replicas of one for this machine alone off the network.

On a node whose address is a loopback one, everything of Ray listens there but the replicas' gRPC
servers, which listen on every interface.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import ray.util
from ray.serve._private import replica
from ray.serve.context import _get_global_client


def bind_to_loopback() -> None:
    """Have this replica's gRPC server listen on the node's address, if that is a loopback one.

    Call it in a deployment's constructor: the server starts after that.
    """
    node = ray.util.get_node_ip_address()
    if ip_address(node).is_loopback:
        replica.add_port_to_grpc_server = _OnAddress(node, replica.add_port_to_grpc_server)


class _OnAddress:
    """Adds a port on one address instead of on every interface."""

    def __init__(self, address: str, add_port: Any) -> None:
        self._address = address
        self._add_port = add_port

    def __call__(self, server: Any, address: str) -> int:
        port = address.rpartition(":")[2]
        return int(self._add_port(server, f"{self._address}:{port}"))


def listening_host() -> str:
    """Return the address on which Serve's proxies listen."""
    return _get_global_client().http_config.host or ""
