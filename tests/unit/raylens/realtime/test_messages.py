"""Errors in the words of all sessions."""

from __future__ import annotations

from raylens.core.errors import InvalidRequest, Overloaded
from raylens.realtime.messages import INTERNAL_ERROR, error_message


def test_an_error_says_what_http_says() -> None:
    assert error_message(INTERNAL_ERROR) == {
        "type": "error",
        "error": "an internal error",
        "code": "internal_error",
        "status": 500,
    }


def test_an_error_has_the_details_that_it_knows() -> None:
    assert error_message(InvalidRequest("x: no", "x", 3, 4))["field"] == "x"
    error = error_message(Overloaded("full", None, retry_after=0.0))
    assert (error["code"], error["status"], error["retry_after"]) == ("overloaded", 503, 0.0)
    assert "field" not in error
