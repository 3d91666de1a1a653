"""What an attempt's exception means: every failure becomes an error with its class.

The errors of :mod:`raylens.core.errors` have their class. Any other exception comes from a job
type's own code, and is transient: a server that it calls may be away.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from raylens.core.errors import FailureClass, RaylensError

logger = logging.getLogger(__name__)

MAX_PATH_CHARS = 160


class InvalidOutput(RaylensError):
    """A job type returned something that isn't JSON."""

    code = "invalid_output"
    failure_class = FailureClass.PERMANENT


class UnknownType(RaylensError):
    """No job type of this name is installed here: perhaps in another release, beside this one."""

    code = "unknown_job_type"
    failure_class = FailureClass.CAPACITY


def error_of(exception: BaseException) -> RaylensError:
    """Return the error that an attempt ends with.

    The message of an exception that isn't ours is only logged: it may contain anything.

    Raises the exception itself if it stops the current task or the process, so that it says nothing
    of the work. A ``CancelledError`` that nobody asked for is an error like others.
    """
    if isinstance(exception, RaylensError):
        return exception
    if isinstance(exception, asyncio.CancelledError) and _is_being_canceled():
        raise exception
    if isinstance(exception, KeyboardInterrupt | GeneratorExit):
        raise exception
    logger.error("the attempt failed", exc_info=exception)
    return RaylensError(f"internal error: {type(exception).__name__}; see the server's log")


def _is_being_canceled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def should_retry(error: RaylensError, is_last_attempt: bool) -> bool:
    """Return whether the work that failed is to be done again."""
    if error.failure_class is FailureClass.TRANSIENT:
        return not is_last_attempt
    return error.failure_class is FailureClass.CAPACITY


def to_json(output: Any) -> dict[str, Any]:
    """Return an output as it reads after it was stored: a JSON object.

    Raises ``InvalidOutput``, which names the value that JSON can't represent.
    """
    if not isinstance(output, dict):
        raise InvalidOutput(f"output: {_type_name(output)}; expected an object", "output")
    try:
        text = json.dumps(output, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError, OverflowError):
        path, problem = _find_problem(output, "output") or ("output", "nested too deep")
        path = path[:MAX_PATH_CHARS]
        raise InvalidOutput(f"{path}: {problem} is not JSON", path) from None
    stored: dict[str, Any] = json.loads(text)
    return stored


def _find_problem(value: Any, path: str) -> tuple[str, str] | None:
    """Return the path and a description of the first value that JSON can't represent."""
    if isinstance(value, dict):
        items = [(f"{path}.{key}", item) for key, item in value.items()]
        for key in value:
            if not isinstance(key, str | int | float | bool | None):
                return path, f"a key of type {type(key).__name__}"
    elif isinstance(value, list | tuple):
        items = [(f"{path}.{index}", item) for index, item in enumerate(value)]
    else:
        return None if _is_json(value) else (path, _type_name(value))
    for item_path, item in items:
        try:
            problem = _find_problem(item, item_path)
        except RecursionError:
            return path, "a structure this deep"
        if problem is not None:
            return problem
    return None


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        return False
    return True


def _type_name(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return "text with half a surrogate pair"
    return f"a value of type {type(value).__qualname__}"
