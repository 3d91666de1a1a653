"""Logging: every line carries the id of the request that it belongs to."""

from __future__ import annotations

import logging
from contextvars import ContextVar

from raylens.core.errors import RaylensError

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""The request that the current task works for."""

_FORMAT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"


class RequestIdFilter(logging.Filter):
    """Adds ``request_id`` to every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class RefusalFilter(logging.Filter):
    """Makes one line of a refusal that Serve logs as a failure, with a traceback: a bad picture is
    no bug."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, RaylensError):
            record.msg, record.args = f"{error.code}: {error.message}", ()
            record.levelno, record.levelname = logging.INFO, "INFO"
            record.exc_info = None
        return True


_REFUSALS = RefusalFilter()


def configure_logging(level: str) -> None:
    """Sends the project's own loggers to standard error, and tames Serve's; may be called again."""
    logging.getLogger("ray.serve").addFilter(_REFUSALS)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT))
    handler.addFilter(RequestIdFilter())
    for name in ("raylens", "deployments", "models", "preprocessing"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
