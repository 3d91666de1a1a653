"""The policy that scales models by the load of their engines."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingContext, AutoscalingPolicy

from deployments.autoscaling import ENGINE_LOAD, EngineLoadPolicy

MODEL = DeploymentID("a")


def context(*loads: float, target_num_replicas: int | None = None) -> AutoscalingContext:
    """Return what Serve tells of a model whose replicas have these loads."""
    replicas = [ReplicaID(str(number), MODEL) for number in range(len(loads))]
    unused: dict[str, Any] = {
        "app_name": None,
        "total_num_requests": 0.0,
        "total_queued_requests": 0.0,
        "raw_metrics": None,
        "capacity_adjusted_min_replicas": 0,
        "capacity_adjusted_max_replicas": 9,
        "policy_state": {},
        "last_scale_up_time": None,
        "last_scale_down_time": None,
        "current_time": None,
        "config": None,
    }
    reported = dict(zip(replicas, loads, strict=True))
    return AutoscalingContext(
        deployment_id=MODEL,
        deployment_name="a",
        current_num_replicas=len(loads),
        target_num_replicas=len(loads) if target_num_replicas is None else target_num_replicas,
        running_replicas=replicas,
        aggregated_metrics={ENGINE_LOAD: reported} if loads else {},
        **unused,
    )


@pytest.mark.parametrize(
    ("loads", "wanted"),
    [
        ((0.0,), 0.0),
        ((0.9,), 1.0),  # one is enough, and fewer than one would be too few
        ((1.0,), 1.0),
        ((1.5,), 1.5),  # Serve rounds up
        ((5.0,), 5.0),
        ((0.6, 0.3), 0.9 / 0.8),  # one would be too busy
        ((0.5, 0.2), 0.7 / 0.8),
        ((2.0, 0.0), 2.0),  # the second one has just started
    ],
)
def test_replicas_follow_the_load(loads: tuple[float, ...], wanted: float) -> None:
    number, state = EngineLoadPolicy()(context(*loads))
    assert number == pytest.approx(wanted)
    assert state == {}


def test_a_lower_target_needs_more_replicas() -> None:
    settings = {
        "policy_function": "deployments.autoscaling:EngineLoadPolicy",
        "policy_kwargs": {"target": 0.5},
    }
    policy = _resolve_policy_callable(AutoscalingPolicy(**settings))  # as Serve does it
    assert policy(context(0.9))[0] == pytest.approx(1.8)


def test_nothing_changes_before_the_first_report() -> None:
    assert EngineLoadPolicy()(context(target_num_replicas=3))[0] == 3
