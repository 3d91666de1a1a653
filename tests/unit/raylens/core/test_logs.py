from __future__ import annotations

import json
import logging
import os
import socket
import sys
from pathlib import Path

import pytest

from raylens.core.errors import InvalidRequest
from raylens.core.logs import (
    JsonFormatter,
    LogSettings,
    RefusalFilter,
    configure_logging,
    current_request_id,
    set_trace_ids,
)


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


def test_json_lines_hold_the_exception_and_further_fields() -> None:
    record = record_of(KeyError("x"))
    record.fields = {"key": "ann"}
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["message"], line["key"]) == ("ERROR", "Request failed.", "ann")
    assert "KeyError: 'x'" in line["exception"]


def test_json_lines_name_the_trace_if_there_is_one() -> None:
    traces = iter(["4bf92f3577b34da6a3ce929d0e0e4736", None])
    set_trace_ids(lambda: next(traces))
    try:
        first, second = (
            json.loads(JsonFormatter().format(record_of(KeyError("x")))) for _ in range(2)
        )
    finally:
        set_trace_ids(lambda: None)
    assert first["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert "trace_id" not in second


@pytest.mark.parametrize(("name", "is_json"), [("text", False), ("json", True)])
def test_a_folder_gets_a_file_for_each_process(tmp_path: Path, name: str, is_json: bool) -> None:
    loggers = [logging.getLogger(package) for package in ("raylens", "deployments")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    try:
        configure_logging(LogSettings("INFO", name, tmp_path / "logs"), "ingress")
        current_request_id.set("id-7")
        logging.getLogger("raylens.api").info("größer\nthan %s", "life")
        logging.getLogger("raylens.api").debug("left out")
        (path,) = (tmp_path / "logs").iterdir()
        assert path.name == f"ingress-{socket.gethostname()}-{os.getpid()}.log"
        text = path.read_text(encoding="utf-8")
        assert "id-7" in text
        assert "left out" not in text
        if is_json:
            assert json.loads(text)["message"] == "größer\nthan life"
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
