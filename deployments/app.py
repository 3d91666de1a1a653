"""``build_app``: the deployment graph. ``bind`` and ``options`` are called only here."""

import logging
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import DeploymentActorConfig

from deployments.ingress import Ingress
from deployments.job_client import QUEUE_ACTOR_NAME
from deployments.job_queue import JobQueueActor
from deployments.preprocessor import Preprocessor
from deployments.vision_model import VisionModel
from raylens.core.config import AppConfig, ModelConfig
from raylens.core.environment import load_config

logger = logging.getLogger(__name__)

HEAD_RESOURCE = "node:__internal_head__"
"""The resource that Ray gives to its head node only."""
MAX_INGRESS_STARTS = 3
"""Attempts to start the ingress and its job queue before the application has failed. Serve waits up
to a minute between two."""
MAX_QUEUE_CALLS = 4096
"""Concurrent calls of the job queue; each watched event stream is one."""
REMOTE_MODEL_CPUS = 0.1
"""CPUs of a replica whose model is on another server, unless the config file sizes it."""


def build_app(args: dict[str, Any]) -> Application:
    """Build the graph: Ingress → Preprocessor → one VisionModel for each of ``models``, and the job
    queue's actor beside the ingress.

    ``args`` is a :class:`raylens.core.config.AppConfig`, to which :mod:`raylens.core.environment`
    may add. The ``deployments`` section of a Serve config file sizes each deployment by its name:
    ``Ingress``, ``Preprocessor``, and the name of each model.

    Raises pydantic's ``ValidationError``, which names what is wrong with ``args``.
    """
    config, notes = load_config(args)
    for note in notes:
        logger.warning(note)
    preprocessor = serve.deployment(Preprocessor).options(name="Preprocessor").bind(config)
    models = {model.name: _vision_model(model, config.log_level) for model in config.models}
    actors = [job_queue(config, args)] if config.jobs.enabled else []
    ingress = serve.deployment(Ingress).options(
        name="Ingress", deployment_actors=actors, max_constructor_retry_count=MAX_INGRESS_STARTS
    )
    return ingress.bind(config, preprocessor, models)


def _vision_model(model: ModelConfig, log_level: str) -> Application:
    # A handle's queue ignores priorities and deadlines, so requests wait in the engine instead.
    options: dict[str, Any] = {"max_ongoing_requests": model.max_batch_size + model.max_waiting}
    if model.runtime in ("openai", "cloud"):
        options["ray_actor_options"] = {"num_cpus": REMOTE_MODEL_CPUS}
    deployment = serve.deployment(VisionModel).options(name=model.name, **options)
    return deployment.bind(model, log_level)


def job_queue(config: AppConfig, args: dict[str, Any]) -> DeploymentActorConfig:
    """Configure the job queue's actor.

    Files tie it to the head node, which outlives the others. The actor loads ``args`` and the
    environment itself: its arguments are visible in Ray's dashboard, and the environment may hold
    passwords.
    """
    resources = {"resources": {HEAD_RESOURCE: 0.001}} if config.jobs.is_tied_to_a_node else {}
    return DeploymentActorConfig(
        name=QUEUE_ACTOR_NAME,
        actor_class=JobQueueActor,
        init_kwargs={"args": args},
        actor_options={"num_cpus": 0, "max_concurrency": MAX_QUEUE_CALLS, **resources},
    )
