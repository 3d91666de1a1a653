"""The figures of what a real server exported: the pages of its node, before and after requests."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from raylens.status.history import History, Moment
from raylens.status.metrics import REQUESTS
from raylens.status.report import Report, make_report

DATA = Path(__file__).parent / "data"
NODE = "127.0.0.1:35071"
MODELS = ("moondream", "smolvlm", "qwen2.5-vl")


def page(name: str) -> str:
    return gzip.decompress((DATA / f"{name}.txt.gz").read_bytes()).decode()


@pytest.fixture(scope="module")
def report() -> Report:
    """Between the pages: 5 answers of moondream, of which 2 about a known picture and question, one
    of smolvlm, and one request that was refused."""
    history = History("raylens")
    history.add(1000.0, {NODE: page("before")})
    history.add(1020.0, {NODE: page("after")})
    return make_report(history.moments, MODELS)


def test_requests_and_tokens_are_counted(report: Report) -> None:
    assert report.times == [1020.0]
    assert report.totals["requests"] == 7
    assert (report.totals["errors"], report.totals["refusals"]) == (0, 1)
    assert [report.model_totals[model]["requests"] for model in MODELS] == [5, 1, 0]
    assert (report.totals["prompt_tokens"], report.totals["answer_tokens"]) == (267, 63)


def test_rates_are_per_second(report: Report) -> None:
    assert report.server["requests_per_s"] == [pytest.approx(7 / 20)]
    assert report.models["moondream"]["tokens_per_s"] == [pytest.approx(40 / 20)]
    assert report.models["qwen2.5-vl"]["requests_per_s"] == [0]


def test_times_are_those_of_requests_that_reached_a_model(report: Report) -> None:
    assert report.model_totals["moondream"]["latency_p50_s"] == pytest.approx(0.0625)
    assert report.models["smolvlm"]["first_token_p50_s"] == [pytest.approx(0.175)]
    assert report.models["qwen2.5-vl"]["latency_p50_s"] == [None]


def test_caches_and_batches(report: Report) -> None:
    moondream = report.models["moondream"]
    assert moondream["prefix_hits"] == [pytest.approx(0.7117)]
    assert moondream["picture_hits"] == [0]
    assert moondream["batch_size"] == [1]
    assert moondream["kv_cache"] == [0]
    memory = moondream["memory_bytes"][0]
    assert memory is not None
    assert 10**8 < memory < 10**9


def test_what_is_not_exported_is_not_known(report: Report) -> None:
    assert report.models["moondream"]["memory_share_bytes"] == [None]
    assert report.server["sessions"] == [None]
    assert report.jobs["queued"] == [0]


def test_without_a_second_moment_there_are_no_figures_yet() -> None:
    for moments in ([], [Moment(0.0, 1, 1, {}, {})]):
        report = make_report(moments, ["moondream"])
        assert report.times == []
        assert set(map(tuple, report.models["moondream"].values())) == {()}
        assert report.totals["requests"] == 0


def test_a_rate_is_that_of_the_last_minute() -> None:
    key = (REQUESTS, "moondream", "200")
    moments = [Moment(10.0 * i, 1, 1, {key: 30.0 if i >= 2 else 0.0}, {}) for i in range(10)]
    rates = make_report(moments, []).server["requests_per_s"]
    assert rates[0] == 0
    assert rates[1] == pytest.approx(30 / 20)
    assert rates[5:8] == [pytest.approx(0.5), pytest.approx(0.5), 0]
