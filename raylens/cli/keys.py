"""``raylens key``: makes API keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from raylens.core.config import ApiKeyConfig
from raylens.core.keys import (
    DEFAULT_SCOPES,
    Scope,
    explain_key,
    generate_key,
    hash_key,
    read_keys_file,
)

app = typer.Typer(help="Make API keys.", no_args_is_help=True)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the key's owner, for logs and limits.")],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What the key may be used for; may be repeated. Default: infer, jobs."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="A file of keys (auth.keys_file) to add the entry to."),
    ] = None,
) -> None:
    """Make a key. It is printed once, and only its hash is stored.

    Without --file, the entry for auth.keys of the configuration is printed, too.
    """
    key = generate_key()
    scopes = [str(each) for each in scope or DEFAULT_SCOPES]
    entry = {"name": name, "hash": hash_key(key), "scopes": scopes}
    try:
        ApiKeyConfig.model_validate(entry)
        if file is not None:
            _add_to_file(file, entry)
    except ValidationError as error:
        raise typer.BadParameter(explain_key(error)) from None
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(key)
    if file is None:
        typer.echo(yaml.safe_dump([entry], sort_keys=False, default_flow_style=None), err=True)


def _add_to_file(path: Path, entry: dict[str, Any]) -> None:
    """Raises ``ValueError`` if the file is invalid or has a key of this name, and ``OSError``."""
    entries = read_keys_file(path) if path.exists() else []
    if any(isinstance(other, dict) and other.get("name") == entry["name"] for other in entries):
        raise ValueError(f"{path}: there is a key named {entry['name']} already")
    text = yaml.safe_dump({"keys": [*entries, entry]}, sort_keys=False)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8", opener=_open_private) as stream:
        stream.write(text)
    partial.replace(path)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
