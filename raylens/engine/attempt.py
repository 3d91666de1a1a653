"""Isolation of failures: one failed call does not end the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)
T = TypeVar("T")


def attempt(work: Callable[[], T]) -> T | Exception:
    """Return the result of ``work``, or the exception that it raised.

    The exception's traceback is removed, because it would keep the failed call's tensors alive.

    Raises ``torch.AcceleratorError`` on a device error, such as an illegal memory access, after
    which the process can't use the device. That ends the engine, and its replica is replaced.
    """
    try:
        return work()
    except torch.AcceleratorError:
        raise
    except Exception as error:
        logger.debug("a call in the engine failed", exc_info=True)
        return error.with_traceback(None)
