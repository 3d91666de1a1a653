"""``raylens``: starts the graph, and says plainly when it can't."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from raylens import __version__
from raylens.cli.run import ConfigError, Server, read_config
from raylens.errors import RaylensError

app = typer.Typer(help="Vision-language models as one Ray Serve deployment graph.", no_args_is_help=True)
console = Console(stderr=True, highlight=False)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A Serve config file.")] = Path("serve_config.yaml"),
    ready_timeout: Annotated[float, typer.Option(help="Seconds that the models may take to load.")] = 600.0,
) -> None:
    """Starts Ray and the application on this machine, and stops both on Ctrl-C."""
    try:
        endpoint = read_config(config)
    except ConfigError as error:
        console.print(f"[red]{config}:[/red] {error}", soft_wrap=True)
        raise typer.Exit(2) from None
    raise typer.Exit(Server(config, endpoint, ready_timeout).serve())


@app.command()
def verify(
    checkpoint: Annotated[str, typer.Argument(help="A hub id, which is downloaded, or a folder.")],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of the hub's.")] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, in which answers can be compared exactly, or bfloat16.")
    ] = "float32",
    device: Annotated[str, typer.Option()] = "cpu",
    reference: Annotated[
        Path | None, typer.Option(help="For Moondream: a checkout of github.com/vikhyat/moondream to compare with.")
    ] = None,
) -> None:
    """Loads a real checkpoint strictly, asks it fixed questions, and compares its answers with plain transformers'."""
    from raylens.cli.verify import Unverifiable, show, verify  # takes seconds to import

    try:
        report = verify(checkpoint, revision, dtype, device, reference)
    except (OSError, ValueError, RaylensError, Unverifiable) as error:
        console.print(f"[red]{checkpoint}:[/red] {error}", soft_wrap=True)
        raise typer.Exit(2) from None
    show(report)
    raise typer.Exit(0 if report.verified else 1)


@app.command()
def version() -> None:
    """Prints the version."""
    typer.echo(__version__)
