from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from raylens.core.config import AppConfig
from raylens.core.environment import (
    COMPAT_ENV_OPTION,
    COMPATIBLE,
    WITHOUT_MEANING,
    VariableError,
    load_config,
)

ARGS: dict[str, Any] = {"models": [{"name": "smolvlm", "family": "smolvlm", "aliases": ["small"]}]}
COMPAT: dict[str, Any] = {**ARGS, "compat_env": True}
Load = Callable[..., tuple[AppConfig, list[str]]]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a configuration in an environment of just these variables."""

    def load(
        environment: Mapping[str, str], args: dict[str, Any] = ARGS
    ) -> tuple[AppConfig, list[str]]:
        monkeypatch.setattr(os, "environ", dict(environment))
        return load_config(args)

    return load


def test_our_own_variables_set_nested_settings(load: Load) -> None:
    config, notes = load(
        {
            "RAYLENS_JOBS__CAPACITY": "70",
            "RAYLENS_JOBS__WEBHOOKS__CLIENT_ID": "me",
            "RAYLENS_LOG_LEVEL": "DEBUG",
            "RAYLENS_RECIPES": '{"mine": {"min_size": 64}}',
        }
    )
    assert config.jobs.capacity == 70
    assert config.jobs.webhooks.client_id == "me"
    assert config.log_level == "DEBUG"
    assert config.named_recipes()["mine"].min_size == 64
    assert notes == []


def test_the_config_file_wins_setting_by_setting(load: Load) -> None:
    environment = {"RAYLENS_JOBS__CAPACITY": "9", "RAYLENS_JOBS__WORKERS": "3"}
    config, notes = load(environment, {**ARGS, "jobs": {"capacity": 70}})
    assert (config.jobs.capacity, config.jobs.workers) == (70, 3)
    assert notes == ["RAYLENS_JOBS__CAPACITY is ignored: the configuration sets jobs.capacity"]


def test_a_misspelled_variable_is_refused_or_noted(load: Load) -> None:
    with pytest.raises(VariableError, match="RAYLENS_JOBS__CAPACTY: Extra inputs"):
        load({"RAYLENS_JOBS__CAPACTY": "70"})
    environment = {
        "RAYLENS_JOB__CAPACITY": "70",
        "raylens_port": "tcp://10.0.0.1:8000",
        "RAYLENS_SERVER": "http://127.0.0.1:8000",
    }
    _, notes = load(environment)
    assert notes == ["RAYLENS_JOB__CAPACITY, raylens_port: unknown, and ignored"]


def test_names_of_variables_may_be_in_lower_case(load: Load) -> None:
    config, notes = load({"raylens_jobs__capacity": "71"})
    assert (config.jobs.capacity, notes) == (71, [])


def test_variables_that_the_configuration_names_are_known(load: Load) -> None:
    jobs = {"webhooks": {"secrets_env": "RAYLENS_MY_SECRETS"}}
    remote = {"base_url": "http://a", "model": "b", "api_key_env": "RAYLENS_MY_KEY"}
    models = [{"name": "a", "runtime": "openai", "remote": remote}]
    environment = {"RAYLENS_MY_SECRETS": "whsec_x", "RAYLENS_MY_KEY": "x"}
    _, notes = load(environment, {"models": models, "jobs": jobs})
    assert notes == []
    _, notes = load({"RAYLENS_WEBHOOK_SECRETS": "whsec_x"})
    assert notes == []


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RAYLENS_JOBS__CAPACITY": "abc"}, "RAYLENS_JOBS__CAPACITY: Input should be a valid int"),
        ({"RAYLENS_JOBS__STORE": "mysql"}, "RAYLENS_JOBS__STORE: expected sqlite"),
        ({"RAYLENS_JOBS__LLM": "none"}, "RAYLENS_JOBS__LLM: unknown model 'none'; known: smolvlm"),
        ({"RAYLENS_RECIPES": "{"}, "RAYLENS_RECIPES: expected JSON"),
        (
            {"RAYLENS_JOBS__WEBHOOKS__ALLOW": "10.0.0.0/8"},
            'RAYLENS_JOBS__WEBHOOKS__ALLOW: expected JSON, such as ["10.0.0.0/8"]',
        ),
        ({"RAYLENS_CORS_ORIGINS": "http://a"}, "RAYLENS_CORS_ORIGINS: expected JSON"),
        ({"RAYLENS_JOBS": "5"}, "RAYLENS_JOBS: expected JSON"),
        ({"RAYLENS_JOBS": '{"capacity": 0}'}, "RAYLENS_JOBS: Input should be greater"),
        ({"RAYLENS_RECIPES": '{"mine": {"sise": 1}}'}, "RAYLENS_RECIPES: recipe.sise: unknown"),
        ({"POSTGRES_URL": "mysql://x", "RAYLENS_COMPAT_ENV": "1"}, "POSTGRES_URL: expected sqlite"),
        ({"QUEUE_SIZE": "abc", "RAYLENS_COMPAT_ENV": "1"}, "QUEUE_SIZE: Input should be"),
        ({"LLM_MODEL": "bad name", "RAYLENS_COMPAT_ENV": "1"}, "LLM_MODEL: "),
        ({"LLM_MODEL": "x", "OLLAMA_HOST": "h?x", "RAYLENS_COMPAT_ENV": "1"}, "OLLAMA_HOST: "),
        ({"LLM_MODEL": "x", "OLLAMA_HOST": "h:port", "RAYLENS_COMPAT_ENV": "1"}, "OLLAMA_HOST: "),
    ],
)
def test_an_invalid_variable_is_named(
    load: Load, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(VariableError) as error:
        load(environment)
    assert str(error.value).startswith(message)


def test_a_mistake_in_the_file_is_not_blamed_on_a_variable(load: Load) -> None:
    with pytest.raises(ValidationError, match=r"jobs\.workers"):
        load({"RAYLENS_JOBS__CAPACITY": "7"}, {**ARGS, "jobs": {"workers": "many"}})


def test_a_section_in_json_is_ignored_in_part(load: Load) -> None:
    environment = {"RAYLENS_JOBS": '{"capacity": 9, "workers": 3}', "RAYLENS_JOBS__WORKERS": "4"}
    config, notes = load(environment, {**ARGS, "jobs": {"capacity": 70}})
    assert (config.jobs.capacity, config.jobs.workers) == (70, 4)
    assert notes == ["RAYLENS_JOBS is ignored: the configuration sets jobs.capacity, jobs.workers"]
    config, notes = load(
        {"RAYLENS_JOBS": environment["RAYLENS_JOBS"]}, {**ARGS, "jobs": {"capacity": 70}}
    )
    assert (config.jobs.capacity, config.jobs.workers) == (70, 3)
    assert notes == ["RAYLENS_JOBS is ignored in part: the configuration sets jobs.capacity"]


def test_the_option_wins_over_the_config_file(load: Load) -> None:
    environment = {"QUEUE_SIZE": "9", COMPAT_ENV_OPTION: "true"}
    config, notes = load(environment, {**ARGS, "compat_env": False})
    assert config.compat_env
    assert config.jobs.capacity == 9
    assert notes == ["QUEUE_SIZE sets jobs.capacity"]


def test_the_language_model_may_be_named_by_an_alias_of_its_family(load: Load) -> None:
    config, _ = load({"RAYLENS_JOBS__LLM": "smolvlm2_500m_video"})
    assert config.jobs.llm == "smolvlm2_500m_video"


def test_the_variables_of_other_programs_are_left_alone_and_named(load: Load) -> None:
    config, notes = load({"DATA_DIR": "/theirs", "API_URL": "http://theirs", "OLLAMA_HOST": "box"})
    assert config == load({})[0]
    assert notes == [
        "DATA_DIR, API_URL, OLLAMA_HOST: ignored; --compat-env, or compat_env: true in the config"
        " file, honors them"
    ]


@pytest.mark.parametrize("how", ["file", "variable"])
def test_each_compatible_variable_sets_its_setting_and_is_noted(load: Load, how: str) -> None:
    values = {
        "POSTGRES_URL": "postgresql://u:p@db/jobs",
        "DATA_DIR": "/data",
        "IMAGE_BATCH_SIZE": "7",
        "CLIENT_ID": "me",
        "API_URL": "https://x.example",
        "DDS_URL": "https://dds.example",
        "QUEUE_SIZE": "9",
        "QUEUE_WORKERS": "3",
        "VLM_MODEL": "small",
        "LLM_MODEL": "llama3:latest",
        "VRAM_THRESHOLD": "0.7",
    }
    assert values.keys() == COMPATIBLE.keys()
    if how == "file":
        config, notes = load(values, COMPAT)
    else:
        config, notes = load({**values, "RAYLENS_COMPAT_ENV": "true"})
    assert config.vram_threshold == 0.7
    jobs = config.jobs
    assert jobs.store == values["POSTGRES_URL"]
    assert str(jobs.data_dir) == "/data"
    assert jobs.image_batch_size == 7
    source = jobs.picture_source
    assert (source.source, source.api_url) == ("domain", "https://x.example")
    assert (source.dds_url, jobs.webhooks.public_url) == ("https://dds.example", "")
    assert jobs.webhooks.client_id == "me"
    assert (jobs.capacity, jobs.workers) == (9, 3)
    assert config.dialect_models.jobs == "smolvlm"
    assert jobs.llm == "llama3:latest"
    assert [note for note in notes if " sets " in note] == [
        f"{name} sets {COMPATIBLE[name]}" for name in values
    ]
    assert "u:p" not in str(notes)


@pytest.mark.parametrize(
    ("model", "checkpoint", "note"),
    [
        ({}, "/m/small.mf", "MOONDREAM_MF_PATH sets the checkpoint of eye"),
        ({"checkpoint": "pocket"}, "/m/small.mf", "MOONDREAM_MF_PATH sets the checkpoint of eye"),
        (
            {"checkpoint": "/own"},
            "/own",
            "MOONDREAM_MF_PATH is ignored: eye isn't the bundled Moondream",
        ),
        (
            {"family": "smolvlm"},
            "pocket",
            "MOONDREAM_MF_PATH is ignored: eye isn't the bundled Moondream",
        ),
    ],
)
def test_a_moonfile_replaces_the_bundled_moondream(
    load: Load, model: dict[str, str], checkpoint: str, note: str
) -> None:
    models = [*ARGS["models"], {"name": "eye", "family": "moondream", **model}]
    args = {**COMPAT, "models": models, "dialect_models": {"caption": "eye"}}
    config, notes = load({"MOONDREAM_MF_PATH": "/m/small.mf"}, args)
    assert [model.checkpoint for model in config.models] == ["pocket", checkpoint]
    assert notes == [note]


def test_the_config_file_and_our_own_variables_win_over_compatible_ones(load: Load) -> None:
    environment = {"QUEUE_SIZE": "9", "QUEUE_WORKERS": "3", "RAYLENS_JOBS__WORKERS": "5"}
    config, notes = load(environment, {**COMPAT, "jobs": {"capacity": 70}})
    assert (config.jobs.capacity, config.jobs.workers) == (70, 5)
    assert notes == [
        "QUEUE_SIZE is ignored: the configuration sets jobs.capacity",
        "QUEUE_WORKERS is ignored: the configuration sets jobs.workers",
    ]


@pytest.mark.parametrize(
    ("host", "base_url"),
    [
        ({}, "http://localhost:11434/v1"),
        ({"OLLAMA_HOST": "http://box:1234/"}, "http://box:1234/v1"),
        ({"OLLAMA_HOST": "box:1234"}, "http://box:1234/v1"),
        ({"OLLAMA_HOST": " box "}, "http://box:11434/v1"),
        ({"OLLAMA_HOST": ":11435"}, "http://127.0.0.1:11435/v1"),
        ({"OLLAMA_HOST": "0.0.0.0:11434"}, "http://0.0.0.0:11434/v1"),
        ({"OLLAMA_HOST": "http://box"}, "http://box/v1"),
        ({"OLLAMA_HOST": "0.0.0.0"}, "http://0.0.0.0:11434/v1"),
        ({"OLLAMA_HOST": "https://box/v1"}, "https://box/v1"),
        ({"OLLAMA_HOST": "https://box/ollama/v1/"}, "https://box/ollama/v1"),
        ({"OLLAMA_HOST": "box/ollama"}, "http://box:11434/ollama/v1"),
        ({"OLLAMA_HOST": "http://:80"}, "http://127.0.0.1:80/v1"),
        ({"OLLAMA_HOST": "[::1]"}, "http://[::1]:11434/v1"),
        ({"OLLAMA_HOST": "[::1]:80"}, "http://[::1]:80/v1"),
        ({"OLLAMA_HOST": "::1"}, "http://[::1]:11434/v1"),
        ({"OLLAMA_HOST": "fe80::1"}, "http://[fe80::1]:11434/v1"),
    ],
)
def test_requests_for_models_that_are_not_served_go_to_ollama(
    load: Load, host: dict[str, str], base_url: str
) -> None:
    config, notes = load({"VLM_MODEL": "llava:7b", "LLM_MODEL": "llama3", **host}, COMPAT)
    assert [model.name for model in config.models] == ["smolvlm", "llava:7b", "llama3"]
    for model in config.models[1:]:
        assert (model.family, model.runtime) == (None, "openai")
        assert (model.remote.base_url, model.remote.model) == (base_url, model.name)
    assert (config.dialect_models.jobs, config.jobs.llm) == ("llava:7b", "llama3")
    assert f"requests for llama3 go to {base_url}" in notes


def test_one_model_may_be_both_vlm_and_llm(load: Load) -> None:
    config, _ = load({"VLM_MODEL": "llava:7b", "LLM_MODEL": "llava:7b"}, COMPAT)
    assert [model.name for model in config.models] == ["smolvlm", "llava:7b"]


def test_models_that_are_served_stay_in_the_graph(load: Load) -> None:
    environment = {"VLM_MODEL": "small", "LLM_MODEL": "smolvlm2_500m_video", "OLLAMA_HOST": "box"}
    config, notes = load(environment, COMPAT)
    assert notes[-1].startswith("OLLAMA_HOST is ignored")
    assert [model.name for model in config.models] == ["smolvlm"]
    assert config.jobs.llm == "smolvlm"


def test_variables_without_meaning_are_named(load: Load) -> None:
    without_meaning = f"{', '.join(WITHOUT_MEANING)}: ignored; raylens has no use for them"
    _, notes = load(dict.fromkeys(WITHOUT_MEANING, "x"))
    assert notes == [without_meaning]
    environment = {**dict.fromkeys(WITHOUT_MEANING, "x"), "OLLAMA_HOST": "http://box"}
    config, notes = load(environment, COMPAT)
    assert config == load({}, COMPAT)[0]
    assert notes == [
        "OLLAMA_HOST is ignored: neither VLM_MODEL nor LLM_MODEL names a model there",
        without_meaning,
    ]


@pytest.mark.parametrize(
    "broken", [{"models": None}, {"models": [5]}, {**ARGS, "jobs": "x"}, {"models": [{"name": 1}]}]
)
def test_a_broken_config_file_is_refused_whatever_the_environment(
    load: Load, broken: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        load({"LLM_MODEL": "llama3", "QUEUE_SIZE": "9"}, {**broken, "compat_env": True})


def test_empty_and_unrelated_variables_change_nothing(load: Load) -> None:
    config, notes = load({"PATH": "/bin", "QUEUE_SIZE": "", "RAYLENS_JOBS__CAPACITY": ""})
    assert config == AppConfig.model_validate(ARGS)
    assert notes == []
