"""Fixtures for all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _default_sigint_handler() -> Iterator[None]:
    """Handle SIGINT, even in a shell's background job, which ignores it.

    Processes that a test starts inherit the setting, and some tests interrupt them.
    """
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
