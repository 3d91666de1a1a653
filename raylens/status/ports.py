"""What the HTTP layer needs to know of the server's processes, wherever they run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from raylens.status.report import Report


@dataclass(frozen=True)
class DeploymentState:
    """A deployment: replicas that run the same code."""

    status: str
    """Such as ``HEALTHY`` or ``UPDATING``."""
    message: str
    """What is wrong; empty if nothing is. It may quote exceptions and paths."""
    target: int
    """Replicas that there should be."""
    running: int
    starting: int
    starting_s: float | None
    """Seconds since the first of these began; None without any."""
    stopping: int
    resources: dict[str, float] = field(default_factory=dict)
    """What each replica reserves, such as ``{"CPU": 1, "GPU": 0.25}``."""


class StatusSource(Protocol):
    """The processes of this application."""

    async def deployments(self) -> dict[str, DeploymentState] | None:
        """Return the deployments by name; None while nobody knows them."""
        ...

    async def report(self) -> Report | None:
        """Return the figures of the last minutes; None while they can't be reached."""
        ...

    async def ray_dashboard(self) -> str | None:
        """Return the address of Ray's dashboard, as ``host:port``; None if there is none."""
        ...
