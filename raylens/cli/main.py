"""``raylens``: the command and its subcommands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from raylens import __version__
from raylens.cli import jobs
from raylens.cli.caption import CaptionArguments, run_caption
from raylens.cli.caption_job import CaptionOptions
from raylens.cli.client import DEFAULT_SERVER, Client
from raylens.cli.config_file import ConfigError, EnvironmentVariableError, check_config_file
from raylens.cli.errors import UsageError
from raylens.cli.results import Format
from raylens.cli.run import Server
from raylens.core.environment import COMPAT_ENV_OPTION
from raylens.core.errors import RaylensError

app = typer.Typer(
    help="Serve vision-language models as one Ray Serve deployment graph.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(jobs.app, name="jobs")
console = Console(stderr=True, highlight=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Serve vision-language models as one Ray Serve deployment graph."""


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A Serve config file.")] = Path(
        "serve_config.yaml"
    ),
    ready_timeout: Annotated[
        float, typer.Option(help="Seconds that the models may take to load.")
    ] = 600.0,
    compat_env: Annotated[
        bool,
        typer.Option(
            "--compat-env",
            help="Honor environment variables of other servers, such as QUEUE_SIZE and VLM_MODEL.",
        ),
    ] = False,
) -> None:
    """Start Ray and the application on this machine; stop both on Ctrl-C."""
    if compat_env:
        os.environ[COMPAT_ENV_OPTION] = "true"
    try:
        endpoint = check_config_file(config)
    except EnvironmentVariableError as error:
        _fail("environment", error)
    except ConfigError as error:
        _fail(config, error)
    raise typer.Exit(Server(config, endpoint, ready_timeout).serve())


@app.command()
def verify(
    checkpoint: Annotated[
        str, typer.Argument(help="A folder, or a Hugging Face hub id, which is downloaded.")
    ],
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit on the hub.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, for an exact comparison of answers, or bfloat16.")
    ] = "float32",
    device: Annotated[str, typer.Option(help="Torch device, such as cpu or cuda.")] = "cpu",
    reference: Annotated[
        Path | None,
        typer.Option(
            help="For Moondream: a checkout of github.com/vikhyat/moondream to compare with."
        ),
    ] = None,
) -> None:
    """Compare a real checkpoint's answers with those of plain transformers.

    The checkpoint is loaded strictly and asked fixed questions.
    """
    # These imports take seconds.
    from models.verify.reference import Unverifiable
    from models.verify.run import verify
    from raylens.cli.verify import print_report

    try:
        report = verify(checkpoint, revision, dtype, device, reference)
    except (OSError, ValueError, RaylensError, Unverifiable) as error:
        _fail(checkpoint, error)
    print_report(report)
    raise typer.Exit(0 if report.verified else 1)


@app.command()
def caption(
    context: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER_OR_FILE", help="Pictures, and folders of pictures.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File for the captions, one record per picture. "
            "Pictures that already have a record are skipped.",
            show_default=False,
        ),
    ] = None,
    file_format: Annotated[
        Literal["jsonl", "txt", "csv"] | None,
        typer.Option(
            "--format",
            help="Format of --out; txt writes a text file beside each picture instead. "
            "By default csv if --out ends in .csv, otherwise jsonl.",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Question to ask about each picture instead of a caption.")
    ] = None,
    length: Annotated[
        Literal["short", "normal", "long"] | None, typer.Option(help="Length of the captions.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of the model; the server chooses by default.")
    ] = None,
    in_flight: Annotated[
        int, typer.Option(min=1, max=256, help="Maximum number of jobs in flight.")
    ] = 32,
    recursive: Annotated[bool, typer.Option(help="Search subfolders too.")] = True,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Retry pictures that failed in an earlier run.")
    ] = False,
    server: jobs.ServerOption = DEFAULT_SERVER,
    patience: jobs.PatienceOption = 60.0,
) -> None:
    """Caption thousands of pictures through the server's job queue.

    If a run is interrupted, the same command resumes it.

    The exit status is 1 if a picture failed or the run had to stop,
    2 if the arguments are invalid or the server refuses them, and
    130 after Ctrl-C.
    """
    arguments = CaptionArguments(
        paths=tuple(paths),
        options=CaptionOptions(prompt or None, length, model or None),
        out=out,
        file_format=Format(file_format) if file_format else None,
        recursive=recursive,
        in_flight=in_flight,
        retry_failed=retry_failed,
    )
    try:
        status = run_caption(
            arguments,
            lambda notify: Client(
                server, patience, waits_while_busy=True, notify=notify, **(context.obj or {})
            ),
            jobs.stderr,
        )
    except UsageError as error:
        jobs.stderr.print(str(error))
        raise typer.Exit(2) from None
    raise typer.Exit(status)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _fail(subject: object, error: Exception) -> NoReturn:
    """Print what is wrong with ``subject``, and exit with status 2."""
    console.print(f"[red]{escape(str(subject))}:[/red] {escape(str(error))}", soft_wrap=True)
    raise typer.Exit(2)
