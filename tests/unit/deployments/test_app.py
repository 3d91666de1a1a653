from __future__ import annotations

import logging

import pytest

from deployments.app import build_app
from deployments.lost_arguments import LostArgumentMixin
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


def test_no_router_tries_a_call_again_whose_picture_is_lost() -> None:
    remote = {"base_url": "http://127.0.0.1:1/v1", "model": "x"}
    models = [
        {"name": "a", "family": "smolvlm"},
        {"name": "b", "runtime": "openai", "remote": remote},
    ]
    _, preprocessor, bound, realtime = build_app({"models": models})._bound_deployment.init_args
    for deployment in (preprocessor, realtime, *bound.values()):
        config = deployment._bound_deployment._deployment_config.request_router_config
        assert issubclass(config.get_request_router_class(), LostArgumentMixin)
