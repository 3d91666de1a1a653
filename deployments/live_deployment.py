"""Deployments that take a changed ``user_config`` without a restart.

Serve pickles the deployments' modules by value, but not this one.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

PATIENCE_S = 60.0
"""How long a process waits for another deployment's settings."""
RETRY_S = 0.5
logger = logging.getLogger(__name__)
Settings = Mapping[str, Any] | None


class LiveDeployment(ABC):
    """Calls :meth:`configure` with each new ``user_config``.

    If a replica can't take one, the last one stays in force, and the log says why: Serve would stop
    all replicas for a mistake in a file. A replica that starts with it fails, as with a mistake in
    ``args``.
    """

    _settings: Settings = None
    _is_configured = False

    async def reconfigure(self, user_config: Settings, rank: object = None) -> None:
        """Called by Serve. Since ``rank`` is among the parameters, it also calls this method if the
        ``user_config`` was removed."""
        settings = user_config or None
        is_start, self._is_configured = not self._is_configured, True
        if settings == self._settings:
            return
        try:
            await self.configure(settings)
        except ValueError as error:
            if is_start:
                raise ValueError(f"user_config: {error}") from None
            logger.error("the former settings stay in force: user_config: %s", error)
            return
        self._settings = settings
        if not is_start:
            logger.info("changed settings are in force")

    @abstractmethod
    async def configure(self, settings: Settings) -> None:
        """Take the application's live settings (:mod:`raylens.core.live_settings`).

        Raises ``ValueError``, and then changes nothing.
        """


async def read_settings(read: Callable[[], Awaitable[Settings]]) -> Settings:
    """Return another deployment's settings once they can be read, or None after ``PATIENCE_S``."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await read()
                except (RayError, RayServeException) as error:  # the other deployment is starting
                    logger.info("the live settings can't be read yet: %r", error)
                await asyncio.sleep(RETRY_S)
    except TimeoutError:
        logger.warning("the live settings can't be read; those of args are in force")
        return None
