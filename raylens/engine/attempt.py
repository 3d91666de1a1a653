"""Work that may fail without taking others with it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)
T = TypeVar("T")


def attempt(work: Callable[[], T]) -> T | Exception:
    """What the work gives, or how it failed. A device that is lost ends the engine instead: its
    replica is replaced.

    Without its traceback an error holds none of the tensors that were being made.
    """
    try:
        return work()
    except torch.AcceleratorError:
        raise
    except Exception as error:
        logger.debug("a failure in the engine", exc_info=True)
        return error.with_traceback(None)
