"""Deployments that take a changed ``user_config`` without a restart.

Serve pickles the deployments' modules by value, but not this one.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

PERIOD_S = 5.0
"""Seconds between two looks at another deployment's settings."""
TIMEOUT_S = 20.0
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


async def changed_settings(
    read: Callable[[], Awaitable[Settings]],
) -> AsyncGenerator[Settings, None]:
    """Yield the settings of a deployment whenever they have changed.

    They are None at first. While ``read`` fails, the last ones count.
    """
    known: Settings = None
    while True:
        await asyncio.sleep(PERIOD_S)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                settings = await read()
        except Exception as error:
            # The other deployment may be starting, or have too much to do.
            logger.warning("the live settings can't be read: %r", error)
            continue
        if settings != known:
            known = settings
            yield settings
