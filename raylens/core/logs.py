"""Logging: every line carries the id of its request."""

from __future__ import annotations

import logging
from contextvars import ContextVar

from raylens.core.errors import RaylensError

current_request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""The id of the request that the current task belongs to."""

_FORMAT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"
_PACKAGES = ("raylens", "deployments", "models", "preprocessing")


class RequestIdFilter(logging.Filter):
    """Adds ``request_id`` to every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = current_request_id.get()
        return True


class RefusalFilter(logging.Filter):
    """Logs a refused request as one line. Serve would log a traceback, as if it were a bug."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, RaylensError):
            record.msg = f"{error.code}: {error.message}"
            record.args = ()
            record.levelno = logging.INFO
            record.levelname = "INFO"
            record.exc_info = None
        return True


_REFUSALS = RefusalFilter()


def configure_logging(level: str) -> None:
    """Send our own loggers to standard error, and quiet Serve's. May be called repeatedly."""
    logging.getLogger("ray.serve").addFilter(_REFUSALS)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT))
    handler.addFilter(RequestIdFilter())
    for name in _PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
