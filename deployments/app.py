"""``build_app``: the whole graph. ``bind`` and ``options`` stand only here."""

import logging
import os
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import DeploymentActorConfig

from deployments.ingress import Ingress
from deployments.job_client import NAME
from deployments.job_queue import JobQueueActor
from deployments.preprocessor import Preprocessor
from deployments.vision_model import VisionModel
from raylens.core.config import AppConfig
from raylens.core.environment import with_environment

logger = logging.getLogger(__name__)

HEAD = "node:__internal_head__"
"""The resource that Ray gives to its head node, and to no other."""
STARTS = 3
"""Of the ingress and its queue, before the application has failed: Serve lets a minute pass between
two."""
MAX_CALLS = 4096
"""Of the queue at a time: each event stream that is watched is one."""


def build_app(args: dict[str, Any]) -> Application:
    """Ingress → Preprocessor → one VisionModel for each of ``models``, and the job queue's actor
    beside the ingress.

    ``args`` is an :class:`raylens.core.config.AppConfig`, to which :mod:`raylens.core.environment`
    may add; pydantic's ``ValidationError`` names what is wrong with it. The ``deployments`` section
    of a Serve config file sizes each deployment by its name: ``Ingress``, ``Preprocessor``, and
    each model's own.
    """
    settings, notes = with_environment(args, os.environ)
    for note in notes:
        logger.warning(note)
    config = AppConfig.model_validate(settings)
    preprocessor = serve.deployment(Preprocessor).options(name="Preprocessor").bind(config)
    models = {
        model.name: serve.deployment(VisionModel)
        .options(name=model.name, max_ongoing_requests=model.max_batch_size + model.max_waiting)
        .bind(model, config.log_level)
        for model in config.models
    }
    actors = [job_queue(config, args)] if config.jobs.enabled else []
    ingress = serve.deployment(Ingress).options(
        name="Ingress", deployment_actors=actors, max_constructor_retry_count=STARTS
    )
    return ingress.bind(config, preprocessor, models)


def job_queue(config: AppConfig, args: dict[str, Any]) -> DeploymentActorConfig:
    """The queue's actor. Files tie it to the head node, the one that outlives the others.

    It reads ``args`` and the environment itself: what stands here can be seen in Ray's dashboard.
    """
    tied = {"resources": {HEAD: 0.001}} if config.jobs.is_tied_to_a_node else {}
    return DeploymentActorConfig(
        name=NAME,
        actor_class=JobQueueActor,
        init_kwargs={"args": args},
        actor_options={"num_cpus": 0, "max_concurrency": MAX_CALLS, **tied},
    )
