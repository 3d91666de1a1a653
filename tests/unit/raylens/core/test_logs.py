from __future__ import annotations

import logging
import sys

import pytest

from raylens.core.errors import InvalidRequest
from raylens.core.logs import RefusalFilter


def record_of(error: Exception) -> logging.LogRecord:
    try:
        raise error
    except Exception:
        return logging.LogRecord(
            "ray.serve", logging.ERROR, "f", 1, "Request failed.", (), sys.exc_info()
        )


def test_a_refusal_takes_one_line_without_a_traceback() -> None:
    record = record_of(InvalidRequest("image: too small", "image"))
    assert RefusalFilter().filter(record)
    assert (record.levelname, record.getMessage()) == ("INFO", "invalid_request: image: too small")
    assert record.exc_info is None


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("y")])
def test_a_failure_keeps_its_traceback(error) -> None:
    record = record_of(error)
    assert RefusalFilter().filter(record)
    assert (record.levelname, record.getMessage()) == ("ERROR", "Request failed.")
    assert record.exc_info is not None
