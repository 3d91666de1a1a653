"""Drains a node of a Ray cluster: Serve moves its replicas, and its proxy ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray._private import state as ray_state
from ray._private.worker import global_worker
from ray.core.generated import autoscaler_pb2
from ray.serve._private.constants import SERVE_DEPLOYMENT_ACTOR_PREFIX, SERVE_NAMESPACE
from ray.serve.context import _get_global_client

PERIOD_S = 1.0
RPC_TIMEOUT_S = 10.0
REASON = "raylens drain"


class NodeDrainError(Exception):
    """The node can't be drained; the message says why."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster that is alive."""

    id: str
    address: str
    name: str
    is_head: bool = False


@dataclass(frozen=True)
class Rest:
    """What of Serve is still on a node."""

    replicas: tuple[str, ...] = ()
    """``application/deployment`` of each."""
    has_proxy: bool = False
    actors: int = 0
    """Of the job queue, the ledger and the like, which move when the replicas have."""

    @property
    def is_empty(self) -> bool:
        return not (self.replicas or self.has_proxy or self.actors)

    def __str__(self) -> str:
        parts = [f"{self.replicas.count(name)} × {name}" for name in sorted(set(self.replicas))]
        parts += ["the proxy"] * self.has_proxy
        parts += [f"{self.actors} actors"] * bool(self.actors)
        return ", ".join(parts) or "nothing"


class Cluster(Protocol):
    """A Ray cluster with Serve."""

    def nodes(self) -> list[Node]: ...

    def drain(self, node: Node) -> None:
        """Have nothing new started on a node, and Serve move what is there.

        Raises ``NodeDrainError``.
        """
        ...

    def rest(self, node: Node) -> Rest: ...


def drain_node(
    cluster: Cluster,
    name: str,
    timeout_s: float | None,
    report: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Drain the node with this id, or the beginning of one, address or name. Returns when nothing
    of Serve is left there.

    Raises ``NodeDrainError``, also if something is left after ``timeout_s`` seconds. The node
    drains on, then: Ray has no way back.
    """
    node = find_node(cluster.nodes(), name)
    cluster.drain(node)
    report(f"node {node.id[:12]} at {node.address} drains")
    deadline = None if timeout_s is None else clock() + timeout_s
    reported = ""
    while not (rest := cluster.rest(node)).is_empty:
        if deadline is not None and clock() >= deadline:
            raise NodeDrainError(f"after {timeout_s:g} s there is still {rest}; the node drains on")
        if str(rest) != reported:
            reported = str(rest)
            report(f"still there: {rest}")
        sleep(PERIOD_S)
    report("nothing is left: the machine can be stopped")


def find_node(nodes: Iterable[Node], name: str) -> Node:
    """Return the one node that ``name`` means. Raises ``NodeDrainError``."""
    nodes = list(nodes)
    found = [node for node in nodes if name in (node.id, node.address, node.name)]
    found = found or [node for node in nodes if len(name) >= 4 and node.id.startswith(name)]
    if len(found) != 1:
        known = ", ".join(f"{node.id[:12]} ({node.address})" for node in nodes)
        number = "no node is" if not found else f"{len(found)} nodes are"
        raise NodeDrainError(f"{number} called {name!r}; known: {known}")
    if found[0].is_head:
        raise NodeDrainError("the head node can't be drained: Serve's controller runs there")
    return found[0]


class RayCluster(Cluster):
    """The cluster that this process is connected to."""

    def __init__(self, address: str | None) -> None:
        ray.init(
            address=address or "auto",
            namespace=SERVE_NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
        )

    def nodes(self) -> list[Node]:
        return [
            Node(
                node["NodeID"],
                node["NodeManagerAddress"],
                node["NodeName"],
                "node:__internal_head__" in node["Resources"],
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def drain(self, node: Node) -> None:
        # The other reason, that the node is idle, is refused while it isn't. Without a deadline no
        # replica is stopped before another one has taken its place.
        is_accepted, message = global_worker.gcs_client.drain_node(
            node.id,
            autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
            REASON,
            0,
            timeout=RPC_TIMEOUT_S,
        )
        if not is_accepted:
            raise NodeDrainError(f"Ray refuses to drain the node: {message}")

    def rest(self, node: Node) -> Rest:
        if node.id not in {each.id for each in self.nodes()}:
            return Rest()  # an idle node that drains ends by itself
        details = _get_global_client().get_serve_details()
        replicas = tuple(
            f"{application}/{deployment}"
            for application, app in details["applications"].items()
            for deployment, state in app["deployments"].items()
            for replica in state["replicas"]
            if replica.get("node_id") == node.id  # none yet, if it starts
        )
        return Rest(replicas, node.id in details["proxies"], count_actors(node.id))


def count_actors(node_id: str) -> int:
    """Return the number of actors on a node that replicas of the ingress share."""
    actors: list[dict[str, Any]] = list(ray_state.actors(actor_state_name="ALIVE").values())
    return sum(
        actor["Name"].startswith(SERVE_DEPLOYMENT_ACTOR_PREFIX)
        and actor["Address"]["NodeID"] == node_id
        for actor in actors
    )
