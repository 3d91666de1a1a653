from __future__ import annotations

import pytest
from typer.testing import CliRunner

from raylens import __version__
from raylens.cli.client import check_server
from raylens.cli.main import app


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
