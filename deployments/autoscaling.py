"""How many replicas a model needs."""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext

ENGINE_LOAD = "engine_load"
"""The name of what each replica reports: :attr:`raylens.engine.metrics.Gauges.load`."""
SLACK = 0.8
"""A replica stops only if the others are left with this part of the target, or less. Otherwise they
would soon call for it again."""


class EngineLoadPolicy:
    """Serve's hook: the number of replicas that have a load of ``target`` each.

    A replica with a load of 1 has a full batch, or a full KV cache, and no request waits. Counts of
    requests don't tell that: a few long ones fill a cache that has room for many short ones. Serve
    applies the bounds, factors and delays of ``autoscaling_config``, and starts the first replica
    of a model that has none. ``policy_kwargs`` sets ``target``.
    """

    def __init__(self, target: float = 1.0) -> None:
        self._target = target

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Return the number of replicas, and no state."""
        loads = (context.aggregated_metrics or {}).get(ENGINE_LOAD, {})
        if not loads:  # no replica has reported yet
            return context.target_num_replicas, {}
        needed = sum(loads.values()) / self._target
        return max(needed, min(context.target_num_replicas, needed / SLACK)), {}
