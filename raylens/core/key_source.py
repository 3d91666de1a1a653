"""The keys of a configuration, read again whenever their file changes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from raylens.core.client_limits import ClientLimits
from raylens.core.config import AppConfig, AuthConfig
from raylens.core.keys import KeyRing

logger = logging.getLogger(__name__)

CHECK_S = 1.0
"""Seconds between two looks at the file."""


class KeySource:
    """The current keys of ``config.auth``, and the limits of clients.

    ``config`` may be a :func:`raylens.core.live_settings.live_view`.
    Raises ``ValueError`` if the keys can't be read. If a later version of the file can't be read,
    the last one stays in force, and the log says so.
    """

    def __init__(self, config: AppConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._auth = config.auth
        self._version = self._read_version()
        self._ring = self._read_ring()
        self._checked_at = clock()

    @property
    def are_needed(self) -> bool:
        """Whether requests need a key."""
        return isinstance(self._config.auth, AuthConfig)

    @property
    def ring(self) -> KeyRing:
        if self._config.auth is not self._auth:
            self._auth = self._config.auth
            self._read_again()
        elif self._clock() - self._checked_at >= CHECK_S:
            self._checked_at = self._clock()
            if self._read_version() != self._version:
                self._read_again()
        return self._ring

    def limits_of(self, client: str) -> ClientLimits:
        """Return the limits of a client: of a key's name, or of an address."""
        key = self.ring.named(client)
        default = self._config.client_limits
        return default if key is None else key.limits.or_else(default)

    def _read_ring(self) -> KeyRing:
        return self._auth.key_ring() if isinstance(self._auth, AuthConfig) else KeyRing(())

    def _read_again(self) -> None:
        self._version = self._read_version()
        self._checked_at = self._clock()
        try:
            self._ring = self._read_ring()
            logger.info("%d keys are in force", len(self._ring))
        except ValueError as error:
            logger.error("the former keys stay in force: %s", error)

    def _read_version(self) -> tuple[int, ...]:
        """Return what differs if the file has changed."""
        if not isinstance(self._auth, AuthConfig) or self._auth.keys_file is None:
            return ()
        try:
            status = os.stat(self._auth.keys_file)
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_size, status.st_ino
