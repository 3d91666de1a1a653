"""The models' routers of this process. All routers run in one event loop.

Serve pickles a router's class by value, with the globals of its module. What two classes share is
therefore kept in this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from ray.serve._private.common import DeploymentID

if TYPE_CHECKING:
    from deployments.picture_router import PictureRouter

_routers: WeakValueDictionary[DeploymentID, PictureRouter] = WeakValueDictionary()


def register_router(model: DeploymentID, router: PictureRouter) -> None:
    _routers[model] = router


def find_router(model: DeploymentID) -> PictureRouter | None:
    """Return a model's router, if a request has gone to the model already."""
    return _routers.get(model)
