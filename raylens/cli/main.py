"""``raylens``: starts the graph, and says plainly when it can't."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from raylens import __version__
from raylens.cli import jobs
from raylens.cli.client import DEFAULT_SERVER, Client
from raylens.cli.run import ConfigError, Server, check_jobs, read_config
from raylens.core.errors import RaylensError

app = typer.Typer(
    help="Vision-language models as one Ray Serve deployment graph.", no_args_is_help=True
)
app.add_typer(jobs.app, name="jobs")
console = Console(stderr=True, highlight=False)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A Serve config file.")] = Path(
        "serve_config.yaml"
    ),
    ready_timeout: Annotated[
        float, typer.Option(help="Seconds that the models may take to load.")
    ] = 600.0,
) -> None:
    """Starts Ray and the application on this machine, and stops both on Ctrl-C."""
    try:
        endpoint = read_config(config, check_jobs)
    except ConfigError as error:
        console.print(f"[red]{config}:[/red] {error}", soft_wrap=True)
        raise typer.Exit(2) from None
    raise typer.Exit(Server(config, endpoint, ready_timeout).serve())


@app.command()
def verify(
    checkpoint: Annotated[str, typer.Argument(help="A hub id, which is downloaded, or a folder.")],
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit of the hub's.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, in which answers can be compared exactly, or bfloat16.")
    ] = "float32",
    device: Annotated[str, typer.Option()] = "cpu",
    reference: Annotated[
        Path | None,
        typer.Option(
            help="For Moondream: a checkout of github.com/vikhyat/moondream to compare with."
        ),
    ] = None,
) -> None:
    """Loads a real checkpoint strictly, asks it fixed questions, and compares its answers with
    plain transformers'."""
    from models.verify import Unverifiable, show, verify  # takes seconds to import

    try:
        report = verify(checkpoint, revision, dtype, device, reference)
    except (OSError, ValueError, RaylensError, Unverifiable) as error:
        console.print(f"[red]{checkpoint}:[/red] {error}", soft_wrap=True)
        raise typer.Exit(2) from None
    show(report)
    raise typer.Exit(0 if report.verified else 1)


@app.command()
def caption(
    context: typer.Context,
    places: Annotated[list[Path], typer.Argument(metavar="FOLDER_OR_FILE", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Gets a line for each picture; what has its line is done.", show_default=False
        ),
    ] = None,
    form: Annotated[
        Literal["jsonl", "txt", "csv"] | None,
        typer.Option(
            "--format",
            help="txt is a file beside each picture; unset is as --out ends, else jsonl.",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What is asked, in place of a caption.")
    ] = None,
    length: Annotated[Literal["short", "normal", "long"] | None, typer.Option()] = None,
    model: Annotated[
        str | None, typer.Option(help="A model's name; unset is the server's choice.")
    ] = None,
    in_flight: Annotated[
        int, typer.Option(min=1, max=256, help="Jobs that are under way at a time.")
    ] = 32,
    recursive: Annotated[bool, typer.Option(help="Folders within folders too.")] = True,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Tries again what failed before.")
    ] = False,
    server: jobs.Server = DEFAULT_SERVER,
    patience: jobs.Patience = 60.0,
) -> None:
    """Captions pictures by the thousand through the server's job queue; after an interruption it
    goes on where it was.

    The exit status is 1 where a picture failed, 2 where nothing could be done as it was asked for,
    130 after Ctrl-C.
    """
    from raylens.cli import caption as captions
    from raylens.cli.results import Format, UsageError

    options = captions.CaptionOptions(prompt or None, length, model or None)
    run = captions.CaptionRun(
        tuple(places), options, out, form and Format(form), recursive, in_flight, retry_failed
    )
    try:
        status = captions.caption(
            run,
            lambda say: Client(
                server, patience, waits_for_room=True, say=say, transport=context.obj
            ),
            jobs.errors,
        )
    except UsageError as error:
        jobs.errors.print(str(error))
        raise typer.Exit(2) from None
    raise typer.Exit(status)


@app.command()
def version() -> None:
    """Prints the version."""
    typer.echo(__version__)
