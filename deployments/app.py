"""``build_app``: the whole graph. ``bind`` and ``options`` stand only here."""

from typing import Any

from ray import serve
from ray.serve import Application

from deployments.ingress import Ingress
from deployments.preprocessor import Preprocessor
from deployments.vision_model import VisionModel
from raylens.config import AppConfig


def build_app(args: dict[str, Any]) -> Application:
    """Ingress → Preprocessor → one VisionModel for each of ``models``.

    ``args`` is an :class:`raylens.config.AppConfig`; pydantic's ``ValidationError`` names what is wrong with it. The
    ``deployments`` section of a Serve config file sizes each deployment by its name: ``Ingress``, ``Preprocessor``,
    and each model's own.
    """
    config = AppConfig.model_validate(args)
    preprocessor = serve.deployment(Preprocessor).options(name="Preprocessor").bind(config)
    models = {
        model.name: serve.deployment(VisionModel)
        .options(name=model.name, max_ongoing_requests=model.max_batch_size + model.max_waiting)
        .bind(model, config.log_level)
        for model in config.models
    }
    return serve.deployment(Ingress).options(name="Ingress").bind(config, preprocessor, models)
