from __future__ import annotations

import logging

import pytest

from deployments.app import build_app
from deployments.ray_environment import RUN_MARK


def test_remarks_on_the_environment_are_logged_unless_raylens_run_printed_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "deployments.app")
    monkeypatch.setenv("RAYLENS_NO_SETTING", "x")
    args = {"models": [{"name": "a", "family": "smolvlm"}]}
    monkeypatch.setenv(RUN_MARK, "x")
    build_app(args)
    assert caplog.messages == []
    monkeypatch.delenv(RUN_MARK)
    build_app(args)
    assert caplog.messages == ["RAYLENS_NO_SETTING: unknown, and ignored"]
