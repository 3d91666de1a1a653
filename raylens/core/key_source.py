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

    Raises ``ValueError`` if the keys can't be read. If a later version of the file can't be read,
    the last one stays in force, and the log says so.
    """

    def __init__(self, config: AppConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._auth = config.auth if isinstance(config.auth, AuthConfig) else None
        self._default_limits = config.client_limits
        self._clock = clock
        self._version = self._read_version()
        self._ring = KeyRing(()) if self._auth is None else self._auth.key_ring()
        self._checked_at = clock()

    @property
    def ring(self) -> KeyRing:
        if self._auth is not None and self._clock() - self._checked_at >= CHECK_S:
            self._checked_at = self._clock()
            self._read_again(self._auth)
        return self._ring

    def limits_of(self, client: str) -> ClientLimits:
        """Return the limits of a client: of a key's name, or of an address."""
        key = self.ring.named(client)
        return self._default_limits if key is None else key.limits.or_else(self._default_limits)

    def _read_again(self, auth: AuthConfig) -> None:
        version = self._read_version()
        if version == self._version:
            return
        self._version = version
        try:
            self._ring = auth.key_ring()
            logger.info("%d keys are in force", len(self._ring))
        except ValueError as error:
            logger.error("the former keys stay in force: %s", error)

    def _read_version(self) -> tuple[int, ...]:
        """Return what differs if the file has changed."""
        if self._auth is None or self._auth.keys_file is None:
            return ()
        try:
            status = os.stat(self._auth.keys_file)
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_size, status.st_ino
