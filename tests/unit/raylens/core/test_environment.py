from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from raylens.core.config import AppConfig
from raylens.core.environment import SETTINGS, WITHOUT_MEANING, with_environment

ARGS: dict[str, Any] = {"models": [{"name": "smolvlm", "family": "smolvlm", "aliases": ["small"]}]}


def configured(
    environment: dict[str, str], args: dict[str, Any] = ARGS
) -> tuple[AppConfig, list[str]]:
    settings, notes = with_environment(args, environment)
    return AppConfig.model_validate(settings), notes


def test_each_variable_sets_its_setting_and_says_so() -> None:
    values = {
        "POSTGRES_URL": "postgresql://u:p@db/jobs",
        "DATA_DIR": "/data",
        "VLM_MODEL": "small",
        "LLM_MODEL": "llama3:latest",
        "IMAGE_BATCH_SIZE": "7",
        "CLIENT_ID": "me",
        "API_URL": "https://x.example",
        "QUEUE_SIZE": "9",
        "QUEUE_WORKERS": "3",
    }
    assert values.keys() == SETTINGS.keys()
    config, notes = configured(values)
    jobs = config.jobs
    assert (jobs.store, str(jobs.data_dir), jobs.image_batch_size) == (
        values["POSTGRES_URL"],
        "/data",
        7,
    )
    assert (jobs.webhooks.client_id, jobs.webhooks.public_url) == ("me", "https://x.example")
    assert (jobs.capacity, jobs.workers, config.dialect_models.jobs) == (9, 3, "small")
    assert jobs.llm is not None
    assert (jobs.llm.model, jobs.llm.base_url) == ("llama3:latest", "http://localhost:11434/v1")
    assert [note for note in notes if "sets" in note] == [
        f"{name} sets {SETTINGS[name]}" for name in values
    ]
    assert "u:p" not in str(notes)


def test_the_config_file_wins() -> None:
    config, notes = configured({"QUEUE_SIZE": "9"}, {**ARGS, "jobs": {"capacity": 70}})
    assert config.jobs.capacity == 70
    assert notes == ["QUEUE_SIZE is ignored: the config file sets jobs.capacity"]


@pytest.mark.parametrize(
    ("environment", "base_url"),
    [
        ({"LLM_MODEL": "small"}, None),
        ({"LLM_MODEL": "llama3", "OLLAMA_HOST": "http://box:1234/"}, "http://box:1234/v1"),
        ({"LLM_MODEL": "llama3", "OLLAMA_HOST": "box:1234"}, "http://box:1234/v1"),
    ],
)
def test_the_language_model_is_the_graphs_own_or_ollamas(
    environment: dict[str, str], base_url: str | None
) -> None:
    config, _ = configured(environment)
    assert config.jobs.llm is not None
    assert config.jobs.llm.base_url == base_url


def test_what_has_no_meaning_is_named() -> None:
    config, notes = configured({**dict.fromkeys(WITHOUT_MEANING, "x"), "OLLAMA_HOST": "http://box"})
    assert config == configured({})[0]
    assert notes == [
        "OLLAMA_HOST is ignored: LLM_MODEL names no model",
        *(f"{name} has no meaning here" for name in WITHOUT_MEANING),
    ]


@pytest.mark.parametrize(
    "broken", [{"models": None}, {"models": [5]}, {**ARGS, "jobs": "x"}, {"models": [{"name": 1}]}]
)
def test_settings_that_are_broken_are_left_to_the_configurations_own_check(
    broken: dict[str, Any],
) -> None:
    settings, _ = with_environment(broken, {"LLM_MODEL": "llama3", "QUEUE_SIZE": "9"})
    with pytest.raises(ValidationError):
        AppConfig.model_validate(settings)


def test_an_environment_without_them_changes_nothing() -> None:
    assert with_environment(ARGS, {"PATH": "/bin", "QUEUE_SIZE": ""}) == (ARGS, [])
