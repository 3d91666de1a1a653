from __future__ import annotations

import copy
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from deployments.autoscaling import EngineLoadPolicy
from raylens.cli.config_file import ConfigError, check_config_file
from raylens.cli.main import app
from raylens.cli.shipped_configs import find_config
from raylens.core.endpoint import Endpoint
from raylens.core.fairness import reserve

ROOT = Path(__file__).parents[3]
SHIPPED = yaml.safe_load((ROOT / "serve_config.yaml").read_text())


def written(folder: Path, config: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_the_url_of_any_address_is_that_of_loopback() -> None:
    urls = {host: Endpoint(host, 8000, "/x").url for host in ("0.0.0.0", "", "::", "::1", "h.de")}
    assert urls == {
        "0.0.0.0": "http://127.0.0.1:8000/x",
        "": "http://127.0.0.1:8000/x",
        "::": "http://[::1]:8000/x",
        "::1": "http://[::1]:8000/x",
        "h.de": "http://h.de:8000/x",
    }


@pytest.mark.parametrize(
    "path",
    [ROOT / "serve_config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))],
    ids=lambda p: p.name,
)
def test_the_shipped_configs_are_valid_and_stay_on_loopback(path: Path) -> None:
    assert check_config_file(path) == Endpoint("127.0.0.1", 8000)
    for application in yaml.safe_load(path.read_text())["applications"]:
        names = {model["name"] for model in application["args"]["models"]}
        assert {deployment["name"] for deployment in application["deployments"]} == {
            "Ingress",
            "Preprocessor",
            "Realtime",
            *names,
        }
        for model in application["args"]["models"]:
            (sized,) = (d for d in application["deployments"] if d["name"] == model["name"])
            capacity = model["max_batch_size"] + model["max_waiting"]
            assert sized["max_ongoing_requests"] == capacity + reserve(capacity)
            # A fixed number of replicas is for a server behind raylens, which has a queue of its
            # own, and for machines without room for a second replica.
            if sized.get("num_replicas") != 1:
                assert model.get("runtime", "engine") == "engine"
                policy = sized["autoscaling_config"]["policy"]["policy_function"]
                assert policy == f"{EngineLoadPolicy.__module__}:{EngineLoadPolicy.__name__}"


def misspell(config: dict[str, Any], *path: str | int) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    place[f"{path[-1]}x"] = 1
    return changed


@pytest.mark.parametrize(
    "path",
    [
        ("applications", 0, "args", "limits"),
        ("applications", 0, "args", "models", 0, "threads"),
        ("applications", 0, "deployments", 1, "num_replicas"),
        ("applications", 0, "deployments", 2, "autoscaling_config", "max_replicas"),
        ("applications", 0, "route_prefix"),
        ("http_options", "host"),
        ("proxy_location",),
    ],
    ids=lambda path: str(path[-1]),
)
def test_a_misspelled_key_is_named_and_the_exit_status_is_not_zero(tmp_path: Path, path) -> None:
    file = written(tmp_path, misspell(SHIPPED, *path))
    result = CliRunner().invoke(app, ["run", str(file)])
    assert result.exit_code == 2
    assert f"{path[-1]}x" in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not YAML"),
        ("- 1", "mapping"),
        ("", "mapping"),
        ("{}", "applications"),
        ("applications: []", "applications: expected at least one"),
    ],
)
def test_a_file_that_is_not_a_config_is_refused(tmp_path: Path, text, words) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        check_config_file(path)
    with pytest.raises(ConfigError, match="No such file"):
        check_config_file(tmp_path / "none.yaml")


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes("a: größe".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8: byte 5"):
        check_config_file(path)


MODEL = {"name": "a", "family": "smolvlm"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"models": [MODEL], "jobs": {"store": "mysql"}},
            "args.jobs.store: expected sqlite or a postgresql:// URL",
        ),
        (
            {"models": [MODEL], "jobs": {"llm": "x"}},
            "args.jobs.llm: unknown model 'x'; known: a",
        ),
        (
            {"models": [{**MODEL, "family": "x"}]},
            "args.models.0.family: unknown family 'x'; known: moondream, smolvlm, qwen2_5_vl",
        ),
        (
            {"models": [{**MODEL, "runtime": "openai"}]},
            "args.models.0.remote.base_url: missing; the runtime openai needs it",
        ),
        (
            {"models": [{**MODEL, "recipe": {"min_size": -1}}]},
            "args.models: a: recipe.min_size: ",
        ),
        (
            {"models": [MODEL], "jobs": {"webhooks": {"allow": ["a b"]}}},
            "args.jobs.webhooks.allow.0: expected an address, a network or a host name: 'a b'",
        ),
    ],
)
def test_messages_begin_with_the_key(tmp_path: Path, args: dict[str, Any], message: str) -> None:
    application = {"name": "x", "import_path": "deployments.app:build_app", "args": args}
    with pytest.raises(ConfigError) as error:
        check_config_file(written(tmp_path, {"applications": [application]}))
    assert str(error.value).startswith(message)


def test_an_invalid_variable_is_not_blamed_on_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLENS_JOBS__CAPACITY", "abc")
    result = CliRunner().invoke(app, ["run", str(written(tmp_path, SHIPPED))])
    assert result.exit_code == 2
    assert result.stderr.startswith("environment: RAYLENS_JOBS__CAPACITY: Input should be a valid")


def test_the_shipped_config_leaves_the_queue_to_variables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYLENS_JOBS__CAPACITY", "70")
    monkeypatch.setenv("RAYLENS_JOBS__WORKERS", "3")
    check_config_file(ROOT / "serve_config.yaml")
    assert "ignored" not in capsys.readouterr().err


def test_compat_env_on_the_command_line_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {**os.environ, "QUEUE_SIZE": "abc"})
    config = copy.deepcopy(SHIPPED)
    config["applications"][0]["args"]["compat_env"] = False
    result = CliRunner().invoke(app, ["run", "--compat-env", str(written(tmp_path, config))])
    assert result.exit_code == 2
    assert "environment: QUEUE_SIZE: " in result.stderr


def test_a_misspelled_deployment_is_named(tmp_path: Path) -> None:
    config = copy.deepcopy(SHIPPED)
    config["applications"][0]["deployments"][1]["name"] = "Preprocesor"
    known = r"Ingress, Preprocessor, Realtime, moondream, qwen2\.5-vl, smolvlm"
    with pytest.raises(ConfigError, match=f"unknown deployment 'Preprocesor'; known: {known}"):
        check_config_file(written(tmp_path, config))


def test_an_unusable_data_folder_is_reported_before_anything_starts(tmp_path: Path) -> None:
    config = copy.deepcopy(SHIPPED)
    file = tmp_path / "a file"
    file.write_text("")
    config["applications"][0]["args"]["jobs"] = {"data_dir": str(file)}
    result = CliRunner().invoke(app, ["run", str(written(tmp_path, config))])
    assert result.exit_code == 2
    assert "args.jobs.data_dir: " in result.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = copy.deepcopy(SHIPPED)
        config["http_options"]["port"] = port
        config["applications"][0]["args"]["jobs"] = {"data_dir": str(tmp_path / "data")}
        result = CliRunner().invoke(app, ["run", str(written(tmp_path, config))])
    assert result.exit_code == 1
    assert f"port {port} of 127.0.0.1 is in use" in result.stderr


def test_host_and_port_of_the_command_replace_the_files() -> None:
    path = ROOT / "serve_config.yaml"
    assert check_config_file(path, "127.0.0.2", 8123) == Endpoint("127.0.0.2", 8123)
    assert check_config_file(path, port=8123) == Endpoint("127.0.0.1", 8123)


def test_an_address_for_others_needs_keys_or_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(app, ["run", str(ROOT / "serve_config.yaml"), "--host", "0.0.0.0"])
    assert result.exit_code == 2
    assert "raylens key new NAME" in result.stderr
    assert "RAYLENS_AUTH=none" in result.stderr
    monkeypatch.setenv("RAYLENS_AUTH", "none")
    assert check_config_file(ROOT / "serve_config.yaml", "0.0.0.0") == Endpoint("0.0.0.0", 8000)


def test_the_environment_does_not_open_what_the_file_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = copy.deepcopy(SHIPPED)
    config["applications"][0]["args"]["auth"] = {"keys_file": str(tmp_path / "none.yaml")}
    monkeypatch.setenv("RAYLENS_AUTH", "none")
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        check_config_file(written(tmp_path, config), "0.0.0.0")


def test_a_shipped_config_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (Path("serve_config.yaml"), Path("configs/cpu.yaml")):
        assert find_config(name).read_text() == (ROOT / name).read_text()
        assert find_config(name, (tmp_path / "none",)) == name
    assert find_config(Path("mine.yaml")) == Path("mine.yaml")
    (tmp_path / "serve_config.yaml").write_text("mine")
    assert find_config(Path("serve_config.yaml")) == Path("serve_config.yaml")


def test_the_cluster_file_passes_rays_own_validation() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text())))


def test_another_application_in_the_file_is_left_alone(tmp_path: Path) -> None:
    config = copy.deepcopy(SHIPPED)
    (ours,) = config["applications"]
    ours["route_prefix"] = "/vlm"
    other = {"name": "other", "route_prefix": "/", "import_path": "a.b:c", "args": {"d": 1}}
    config["applications"] = [other, ours]
    assert check_config_file(written(tmp_path, config)).url == "http://127.0.0.1:8000/vlm"
    config["applications"] = [other]
    with pytest.raises(ConfigError, match=r"import_path deployments\.app:build_app"):
        check_config_file(written(tmp_path, config))


def with_settings(*blocks: Any) -> dict[str, Any]:
    config: dict[str, Any] = copy.deepcopy(SHIPPED)
    for deployment, block in zip(config["applications"][0]["deployments"], blocks, strict=False):
        deployment["user_config"] = block
    return config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limits": {"max_token": 1}}, "limits.max_token: Extra inputs"),
        ({"models": {"moondreem": {}}}, "models.moondreem: unknown model"),
        ({"jobs": {"store": "sqlite"}}, "jobs.store: needs new replicas; change it in args"),
        ({"auth": {"keys": []}}, "auth: expected keys or a keys_file with at least one key"),
    ],
)
def test_settings_that_could_not_be_in_force_are_reported(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    path = written(tmp_path, with_settings({}, settings))
    with pytest.raises(ConfigError) as error:
        check_config_file(path)
    assert str(error.value).startswith(f"deployments.Preprocessor.user_config: {message}")


def test_a_check_tells_whether_a_file_is_valid(tmp_path: Path) -> None:
    same: list[Any] = 6 * [{"limits": {"max_tokens": 9}}]
    result = CliRunner().invoke(app, ["check", str(written(tmp_path, with_settings(*same)))])
    assert result.exit_code == 0
    assert result.stdout.endswith("config.yaml: valid\n")
    assert result.stderr == ""
    different = written(tmp_path, with_settings(same[0], {}))
    result = CliRunner().invoke(app, ["check", str(different)])
    assert result.exit_code == 0
    assert "the user_config of Preprocessor is not that of Ingress" in result.stderr
    same = 6 * [{"limits": {"max_in_flight": 5000}, "models": {"smolvlm": {"max_waiting": 200}}}]
    result = CliRunner().invoke(app, ["check", str(written(tmp_path, with_settings(*same)))])
    assert result.exit_code == 0
    assert "max_ongoing_requests of Ingress is 2048; its limits allow " in result.stderr
    assert "max_ongoing_requests of smolvlm is 80; its limits allow 270" in result.stderr
    result = CliRunner().invoke(app, ["check", str(written(tmp_path, with_settings(3)))])
    assert result.exit_code == 2
