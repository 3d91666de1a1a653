"""Logging: every line carries the id of its request."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from raylens.core.errors import RaylensError

current_request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""The id of the request that the current task belongs to."""

MAX_FILE_BYTES = 10 * 2**20
KEPT_FILES = 30
"""Files of a kind of process that are kept when another one starts."""
OLD_FILES = 5
"""Rotated files of a process that are kept."""
_FORMAT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"
_trace_ids: list[Callable[[], str | None]] = [lambda: None]
"""The last one finds the id of the current task's trace."""
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


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the record's ``fields``, if it has any, and the trace's id, if
    there is a trace."""

    def format(self, record: logging.LogRecord) -> str:
        trace_id = _trace_ids[-1]()
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time,
            "level": record.levelname,
            "logger": record.name,
            "request_id": getattr(record, "request_id", "-"),
            **({} if trace_id is None else {"trace_id": trace_id}),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def set_trace_ids(find: Callable[[], str | None]) -> None:
    """Add what ``find`` returns to every JSON line of this process, unless it is None."""
    _trace_ids.append(find)


@dataclass(frozen=True)
class LogSettings:
    """How a process logs."""

    level: str = "INFO"
    format: str = "text"
    """``text`` or ``json``."""
    folder: Path | None = None
    """A folder for log files, beside standard error. They rotate."""


_REFUSALS = RefusalFilter()


def configure_logging(settings: LogSettings, process: str) -> None:
    """Send our own loggers to standard error, and quiet Serve's. May be called repeatedly.

    ``process`` is the beginning of the log file's name. Raises ``OSError`` if the folder can't be
    written.
    """
    logging.getLogger("ray.serve").addFilter(_REFUSALS)
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if settings.folder is not None:
        settings.folder.mkdir(parents=True, exist_ok=True)
        _remove_old_files(settings.folder, process)
        # Several processes must not rotate the same file, nor several machines.
        path = settings.folder / f"{process}-{socket.gethostname()}-{os.getpid()}.log"
        handlers.append(
            RotatingFileHandler(
                path, maxBytes=MAX_FILE_BYTES, backupCount=OLD_FILES, encoding="utf-8", delay=True
            )
        )
    formatter = JsonFormatter() if settings.format == "json" else logging.Formatter(_FORMAT)
    for handler in handlers:
        handler.setFormatter(formatter)
        handler.addFilter(RequestIdFilter())
    for name in _PACKAGES:
        logger = logging.getLogger(name)
        for old in logger.handlers:
            old.close()
        logger.handlers = handlers
        logger.setLevel(settings.level)
        logger.propagate = False


def _remove_old_files(folder: Path, process: str) -> None:
    """Remove the oldest files of processes of a kind, which have probably ended."""
    with suppress(OSError):  # another process may remove them, too
        files = sorted(folder.glob(f"{process}-*.log*"), key=lambda path: path.stat().st_mtime)
        for path in files[:-KEPT_FILES]:
            path.unlink(missing_ok=True)
