"""Environment variables that Ray and Serve read when they start, with the values that raylens
needs.

``python -m deployments.ray_environment`` prints them for a shell that starts a node of a cluster.
"""

from __future__ import annotations

RUN_MARK = "RAYLENS_RUN"
"""The variable that every process of a ``raylens run`` inherits, so that all of them can be found
and ended."""
DRAIN_FILE = "RAYLENS_DRAIN_FILE"
"""The variable with the path of a file that exists while a ``raylens run`` drains. The file holds
JSON, and ``/ready`` shows that."""
ENVIRONMENT = {
    # gRPC between replicas, and user code on the replica's own event loop, took a graph that does
    # nothing from 79 to 127 requests/s on 2 cores.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    # An answer may hold a picture.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 2**20),
    # Serve's controller otherwise wakes ten times a second, which slowed a model on 2 cores by a
    # seventh.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # An actor that died, or left a node that is drained, is back before a request gives up on it.
    "RAY_SERVE_DEPLOYMENT_ACTOR_HEALTH_CHECK_PERIOD_S": "2",
    # Limits on connections and headers, which the proxy doesn't have by itself.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.http_protocol:install",
    # Ray's own ports need a token.
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}
WORKER = {
    # A pod that is to end: more than the longest answer, by the time in which a replica of a model
    # starts elsewhere. Within it, Serve stops no replica before another one has taken its place.
    # The head, which can't be drained, keeps Ray's 30 s.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "900",
}
"""What a worker of a cluster on Kubernetes adds."""
ONE_MACHINE = {
    # All of Ray listens on 127.0.0.1, so no other machine can join. Its ports must not be reached:
    # some of them can be made to end the server without a token.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""What a server adds that will never be part of a cluster."""

if __name__ == "__main__":
    print(*(f"{name}={value}" for name, value in ENVIRONMENT.items()))
