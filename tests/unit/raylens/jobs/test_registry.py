from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from raylens.jobs import registry
from raylens.jobs.types.base import JobInput, JobType


class CountJob(JobType):
    name = "count"
    input_model = JobInput


class NamelessJob(JobType):
    input_model = JobInput
    name = ""


class InputlessJob(JobType):
    name = "inputless"
    input_model = dict  # type: ignore[assignment]


class UnrelatedJob:
    name = "unrelated"
    input_model = JobInput


class ExitingJob(JobType):
    name = "exiting"
    input_model = JobInput

    def __init__(self) -> None:
        raise SystemExit(1)


class FailingJob(JobType):
    name = "failing"
    input_model = JobInput

    def __init__(self) -> None:
        raise RuntimeError("no GPU")


def entry(value: str, name: str = "plugin") -> EntryPoint:
    return EntryPoint(name, value, registry.ENTRY_POINT_GROUP)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_package:Job", "ModuleNotFoundError: No module named 'no_such_package'"),
        (f"{__name__}:NoSuchJob", "AttributeError"),
        (f"{__name__}:FailingJob", "RuntimeError: no GPU"),
        (f"{__name__}:NamelessJob", "TypeError: name: expected text"),
        (f"{__name__}:InputlessJob", "input_model: expected a subclass of JobInput"),
        (f"{__name__}:entry", "TypeError"),
        (f"{__name__}:UnrelatedJob", "TypeError: expected a subclass of JobType"),
        (f"{__name__}:ExitingJob", "SystemExit: 1"),
    ],
)
def test_a_broken_plugin_is_named_and_the_other_types_stay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str, message: str
) -> None:
    plugins = [entry(value, "broken"), entry(f"{__name__}:CountJob")]
    monkeypatch.setattr(registry, "entry_points", lambda group: plugins)
    types = registry.load_job_types.__wrapped__()
    assert {"caption", "batch", "count"} <= types.keys()
    assert len(types) == 8
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the job type broken ({value}) can't be loaded: ")
    assert message in record.getMessage()
