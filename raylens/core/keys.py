"""API keys: who sends a request, and what they may do.

A key is 256 random bits, so its plain SHA-256 is as safe to store as a slow hash of a password.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from raylens.core.client_limits import NO_LIMITS, ClientLimits

PREFIX = "rl-"
HASH_PREFIX = "sha256:"
RANDOM_BYTES = 32


class Scope(StrEnum):
    """What a key may be used for."""

    INFER = "infer"
    JOBS = "jobs"
    ADMIN = "admin"


DEFAULT_SCOPES = (Scope.INFER, Scope.JOBS)


@dataclass(frozen=True)
class ApiKey:
    name: str
    hash: str
    scopes: frozenset[Scope]
    limits: ClientLimits = NO_LIMITS
    """Those that it sets. The others are the configuration's ``client_limits``."""


current_key: ContextVar[ApiKey | None] = ContextVar("current_key", default=None)
"""The key of the current request; None if the server has no keys."""


def generate_key() -> str:
    """Return a new key."""
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def hash_key(key: str) -> str:
    """Return what a configuration stores of a key."""
    return HASH_PREFIX + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class KeyRing:
    """The keys of a server. Raises ``ValueError`` if a name or a hash is there twice."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = tuple(keys)
        self._by_name = {key.name: key for key in self._keys}
        for attribute in ("name", "hash"):
            values = [getattr(key, attribute) for key in self._keys]
            if twice := {value for value in values if values.count(value) > 1}:
                raise ValueError(f"two keys have the {attribute} {sorted(twice)[0]!r}")

    def __len__(self) -> int:
        return len(self._keys)

    def named(self, name: str) -> ApiKey | None:
        return self._by_name.get(name)

    def find(self, presented: str) -> ApiKey | None:
        """Return the key that a sender presents. The time that it takes tells nothing of others."""
        digest = hash_key(presented)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.hash, digest):
                found = key
        return found


def read_keys_file(path: Path) -> list[Any]:
    """Return the entries of a file of keys: YAML with a list under ``keys``.

    Raises ``ValueError``, which names the file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ValueError(f"{path}: {reason}") from None
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list under keys")
    return entries


def explain_key(error: ValidationError) -> str:
    """Return what is wrong with an entry, without the entry."""
    first = error.errors(include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
