from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from raylens import __version__
from raylens.cli.client import check_server
from raylens.cli.config_file import ConfigError, check_config_file
from raylens.cli.main import app
from raylens.core.config import AuthConfig


@pytest.mark.parametrize("arguments", [["--version"], ["version"]])
def test_the_version_is_printed(arguments) -> None:
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.output.strip()) == (0, __version__)


@pytest.mark.parametrize("arguments", [["-h"], ["caption", "-h"], ["jobs", "-h"], ["run", "-h"]])
def test_help_has_a_short_option(arguments) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://host:8000", "http://host:8000"),
        ("http://host:8000/", "http://host:8000"),
        ("http://host:8000/v1", "http://host:8000"),
        ("http://host:8000/v1/", "http://host:8000"),
        ("https://host/vlm/v1", "https://host/vlm"),
    ],
)
def test_the_servers_url_may_be_that_of_an_openai_client(url, base) -> None:
    assert check_server(url) == base


def test_a_new_key_is_printed_once_and_its_hash_stored(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    keys = {}
    for name, options in (("ann", []), ("root", ["--scope", "admin", "--scope", "infer"])):
        result = CliRunner().invoke(app, ["key", "new", name, "--file", str(path), *options])
        assert result.exit_code == 0, result.output
        keys[name] = result.stdout.strip()
    assert path.stat().st_mode & 0o077 == 0
    ring = AuthConfig(keys_file=path).key_ring()
    for name, scopes in (("ann", {"infer", "jobs"}), ("root", {"admin", "infer"})):
        assert keys[name] not in path.read_text()
        found = ring.find(keys[name])
        assert found is not None
        assert (found.name, set(map(str, found.scopes))) == (name, scopes)
    again = CliRunner().invoke(app, ["key", "new", "ann", "--file", str(path)])
    assert again.exit_code == 2
    assert "there is a key named ann already" in again.output


def test_without_a_file_the_entry_for_the_configuration_is_printed() -> None:
    result = CliRunner().invoke(app, ["key", "new", "ann"])
    (entry,) = yaml.safe_load(result.stderr)
    found = AuthConfig.model_validate({"keys": [entry]}).key_ring().find(result.stdout.strip())
    assert found is not None


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "-x\n"])
def test_a_bad_name_is_a_usage_error(name: str) -> None:
    assert CliRunner().invoke(app, ["key", "new", name]).exit_code == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("keys: 5", "expected a list under keys"),
        ("[", "ParserError"),
        ("keys: []", "at least one key"),
        ("keys: [{name: a, hash: secret}]", "keys.0.hash: String should match pattern"),
        (f"keys: [{{name: a, hash: 'sha256:{'0' * 64}', extra: 1}}]", "keys.0.extra: Extra inputs"),
    ],
)
def test_a_bad_file_of_keys_is_explained_without_what_it_holds(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        AuthConfig(keys_file=path).key_ring()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "auth", "is_fine"),
    [
        ("127.0.0.1", None, True),
        ("localhost", None, True),
        ("::1", None, True),
        ("0.0.0.0", None, False),
        ("", None, False),
        ("192.168.1.7", None, False),
        ("vision.example.com", None, False),
        ("0.0.0.0", "none", True),
        ("0.0.0.0", {"keys": [{"name": "a", "hash": "sha256:" + "0" * 64}]}, True),
        ("127.0.0.1", {"keys": []}, False),
    ],
)
def test_a_server_that_others_reach_needs_keys(
    tmp_path: Path, host: str, auth: object, is_fine: bool
) -> None:
    config = yaml.safe_load(Path("serve_config.yaml").read_text())
    config["http_options"]["host"] = host
    config["applications"][0].setdefault("args", {})["auth"] = auth
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    if is_fine:
        check_config_file(path)
        return
    with pytest.raises(ConfigError, match=r"args\.auth: "):
        check_config_file(path)
