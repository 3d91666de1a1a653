"""``build_app``: the deployment graph. ``bind`` and ``options`` are called only here."""

import logging
import os
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import (
    AutoscalingConfig,
    AutoscalingPolicy,
    DeploymentActorConfig,
    RequestRouterConfig,
)

from deployments.ingress import Ingress
from deployments.job_client import QUEUE_ACTOR_NAME
from deployments.job_queue import JobQueueActor
from deployments.ledger import ledger_actor_config
from deployments.lost_arguments import DefaultRouter
from deployments.picture_router import PictureRouter, PreprocessorRouter
from deployments.preprocessor import Preprocessor
from deployments.ray_environment import RUN_MARK
from deployments.realtime import Realtime
from deployments.session_router import SessionRouter
from deployments.shared_state import shared_state_actor_config
from deployments.vision_model import VisionModel
from raylens.api.request_body import MAX_UPLOADS
from raylens.core.config import AppConfig, ModelConfig
from raylens.core.environment import load_config
from raylens.core.fairness import reserve

logger = logging.getLogger(__name__)

HEAD_RESOURCE = "node:__internal_head__"
"""The resource that Ray gives to its head node only."""
MAX_INGRESS_STARTS = 3
"""Number of attempts to start the ingress and its job queue before Serve marks the application as
failed. Serve waits up to a minute between attempts."""
SPARE_REQUESTS = 64
"""Requests of a replica of the ingress beyond its limits: health checks, and other short reads."""
MAX_QUEUE_CALLS = 4096
"""Maximum concurrent calls to the job queue."""
MAX_PICTURES = 128
"""Pictures that a replica of the preprocessor holds. Others wait in a handle, which knows neither
clients nor priorities."""
REALTIME_CPUS = 0.2
"""CPUs reserved by a replica for live video, unless the Serve config file overrides it."""
SESSION_LOAD = 0.75
"""Of the sessions that a replica may have, before another one starts."""
MAX_SESSION_CALLS = 1024
"""Calls about sessions of one replica: they are short."""
REMOTE_MODEL_CPUS = 0.1
"""CPUs reserved by a replica that proxies a remote model, unless the Serve config file overrides
it."""


def build_app(args: dict[str, Any]) -> Application:
    """Build the graph: Ingress calls the Preprocessor and one VisionModel for each of ``models``.

    If jobs are enabled, the job queue is an actor of the ingress deployment.

    ``args`` holds the fields of an :class:`AppConfig`; environment variables may add to them (see
    :mod:`raylens.core.environment`). The ``deployments`` section of a Serve config file sets
    the size of each deployment. The names are ``Ingress``, ``Preprocessor``, and the name of each
    model.

    Raises pydantic's ``ValidationError``, which names the invalid fields of ``args``, and
    :class:`raylens.core.environment.VariableError`, which names the invalid variables.
    """
    return build_graph(args, VisionModel)


def build_graph(
    args: dict[str, Any],
    model_class: type[VisionModel],
    realtime_class: type[Realtime] = Realtime,
) -> Application:
    """As :func:`build_app`, with other classes for the models and for live video."""
    config, notes = load_config(args)
    if RUN_MARK not in os.environ:  # else ``raylens run`` has printed them
        for note in notes:
            logger.warning(note)
    preprocessor = serve.deployment(Preprocessor).options(
        name="Preprocessor",
        max_ongoing_requests=MAX_PICTURES,
        request_router_config=RequestRouterConfig(request_router_class=PreprocessorRouter),
        **_update_options(config),
    )
    model_apps = {
        model.name: _bind_vision_model(model_class, model, config) for model in config.models
    }
    actors = [shared_state_actor_config(), ledger_actor_config()]
    if config.jobs.enabled:
        actors.append(job_queue_actor_config(config, args))
    ingress = serve.deployment(Ingress).options(
        name="Ingress",
        deployment_actors=actors,
        max_constructor_retry_count=MAX_INGRESS_STARTS,
        max_ongoing_requests=max_ingress_requests(config),
        **_update_options(config),
    )
    preprocessor_app = preprocessor.bind(config)
    realtime = serve.deployment(realtime_class).options(
        name="Realtime",
        max_ongoing_requests=MAX_SESSION_CALLS,
        request_router_config=RequestRouterConfig(request_router_class=SessionRouter),
        autoscaling_config=AutoscalingConfig(
            min_replicas=0,
            max_replicas=1,
            policy=AutoscalingPolicy(
                policy_function="deployments.autoscaling:EngineLoadPolicy",
                policy_kwargs={"target": SESSION_LOAD},
            ),
        ),
        ray_actor_options={"num_cpus": REALTIME_CPUS},
        **_update_options(config),
    )
    realtime_app = realtime.bind(config, preprocessor_app, model_apps)
    return ingress.bind(config, preprocessor_app, model_apps, realtime_app)


def _update_options(config: AppConfig) -> dict[str, Any]:
    """Return options with which replicas are replaced, and removed, without a failed request.

    A new one is ready before it replaces an old one, and that ends its answers before it stops.
    """
    timeout_s = config.defaults.max_timeout_s
    return {"max_surge_percent": 100, "graceful_shutdown_timeout_s": timeout_s}


def max_ingress_requests(config: AppConfig) -> int:
    """Return the requests of a replica of the ingress: what its limits allow, and a few more."""
    jobs = config.jobs
    limits = config.limits
    shared = (
        limits.max_in_flight,
        jobs.max_requests,
        jobs.max_reads,
        jobs.max_event_streams,
        config.realtime.max_sessions,
    )
    in_flight = sum(limit + reserve(limit) for limit in shared)
    return in_flight + limits.max_unfinished_bodies + MAX_UPLOADS + SPARE_REQUESTS


def _bind_vision_model(
    model_class: type[VisionModel], model: ModelConfig, config: AppConfig
) -> Application:
    # A handle's queue ignores priorities and deadlines. The replica therefore accepts as many
    # requests as the engine can hold, and they wait there.
    router = PictureRouter if model.runtime == "engine" else DefaultRouter  # others have no caches
    options: dict[str, Any] = {
        "request_router_config": RequestRouterConfig(request_router_class=router),
        "max_ongoing_requests": model.capacity + reserve(model.capacity),
        **_update_options(config),
    }
    if model.runtime in ("openai", "cloud"):
        options["ray_actor_options"] = {"num_cpus": REMOTE_MODEL_CPUS}
    deployment = serve.deployment(model_class).options(name=model.name, **options)
    return deployment.bind(model, config)


def job_queue_actor_config(config: AppConfig, args: dict[str, Any]) -> DeploymentActorConfig:
    """Return the configuration of the job queue's actor.

    Passes the raw ``args``, not the loaded config: actor arguments are visible in Ray's dashboard,
    and the config may contain passwords from environment variables. The actor reads those itself.

    A queue that stores files on a local disk is pinned to the head node, which outlives the other
    nodes.
    """
    resources = {"resources": {HEAD_RESOURCE: 0.001}} if config.jobs.is_tied_to_a_node else {}
    return DeploymentActorConfig(
        name=QUEUE_ACTOR_NAME,
        actor_class=JobQueueActor,
        init_kwargs={"args": args},
        actor_options={"num_cpus": 0, "max_concurrency": MAX_QUEUE_CALLS, **resources},
    )
