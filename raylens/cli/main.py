"""``raylens``: the command and its subcommands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import psutil
import typer
from rich.console import Console
from rich.markup import escape

from raylens import __version__
from raylens.cli import jobs, keys
from raylens.cli.annotate_commands import add_commands
from raylens.cli.config_file import (
    ConfigError,
    EnvironmentVariableError,
    check_config_file,
    read_applications,
)
from raylens.cli.errors import UsageError
from raylens.cli.run import Server
from raylens.cli.shipped_configs import DEFAULT, find_config
from raylens.cli.watch_command import add_command as add_watch_command
from raylens.core.endpoint import Endpoint
from raylens.core.environment import COMPAT_ENV_OPTION
from raylens.core.errors import RaylensError

app = typer.Typer(
    help="Serve vision-language models as one Ray Serve deployment graph.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(jobs.app, name="jobs")
app.add_typer(keys.app, name="key")
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
    config: Annotated[
        Path,
        typer.Argument(help="A Serve config file, or a shipped one, such as configs/cpu.yaml."),
    ] = DEFAULT,
    host: Annotated[
        str | None, typer.Option(help="The address to listen on, instead of the file's.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The port, instead of the file's.")
    ] = None,
    ready_timeout: Annotated[
        float, typer.Option(help="Seconds that the models may take to load.")
    ] = 600.0,
    drain_timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds that requests and jobs have to end after SIGTERM."
            " Default: the longest deadline of a request, defaults.max_timeout_s.",
        ),
    ] = None,
    compat_env: Annotated[
        bool,
        typer.Option(
            "--compat-env",
            help="Honor environment variables of other servers, such as QUEUE_SIZE and VLM_MODEL.",
        ),
    ] = False,
) -> None:
    """Start Ray and the application on this machine; stop both on Ctrl-C.

    SIGTERM drains the server first, as `raylens drain` does. A second one ends it at once.

    Example: raylens run serve_config.yaml
    """
    if compat_env:
        os.environ[COMPAT_ENV_OPTION] = "true"
    config = find_config(config)
    endpoint = _check(config, host, port)
    if drain_timeout is None:
        drain_timeout = max(each.defaults.max_timeout_s for each in read_applications(config))
    raise typer.Exit(Server(config, endpoint, ready_timeout, drain_timeout).serve())


@app.command()
def drain(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port of the server.")] = 8000,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds after which the server ends at once; default: its --drain-timeout."
        ),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option(help="Drain this node of a Ray cluster instead: its id, address or name."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="With --node: the cluster, HOST:PORT; default: that of this machine."),
    ] = None,
) -> None:
    """End the server that `raylens run` started on this machine, without a failed request.

    It takes no new requests (503), /ready is no longer 200, answers and jobs that have begun are
    finished, and jobs that wait stay in the store. With --node: have Serve move the replicas of a
    node of a Ray cluster, and wait until the node can be stopped.

    Examples: raylens drain --timeout 60; raylens drain --node 10.0.0.7
    """
    if node is not None:
        raise typer.Exit(_drain_node(node, address, timeout))
    from raylens.cli.drain import ServerNotFound, drain_server, find_server

    try:
        server, endpoint = find_server(port)
        drain_server(server, endpoint, timeout, typer.echo)
    except (ServerNotFound, psutil.AccessDenied) as error:
        _fail("drain", error)
    typer.echo("the server has ended")


def _drain_node(node: str, address: str | None, timeout: float | None) -> int:
    from deployments.node_drain import NodeDrainError, RayCluster, drain_node  # takes a second

    try:
        drain_node(RayCluster(address), node, timeout, typer.echo)
    except (NodeDrainError, ConnectionError) as error:
        console.print(f"[red]drain:[/red] {escape(str(error))}", soft_wrap=True)
        return 1
    return 0


@app.command()
def check(
    config: Annotated[
        Path,
        typer.Argument(help="A Serve config file, or a shipped one, such as configs/cpu.yaml."),
    ] = DEFAULT,
) -> None:
    """Check a config file before it is deployed. Exit status: 0 if it is valid, 2 if not.

    Serve itself doesn't look into the application's settings before they are in force.

    Example: raylens check serve_config.yaml && serve deploy serve_config.yaml
    """
    config = find_config(config)
    _check(config)
    typer.echo(f"{config}: valid")


@app.command()
def pull(
    model: Annotated[
        str | None,
        typer.Argument(help="A Hugging Face hub id; with --config, the name of a model in it."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit on the hub.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A Serve config file, of which all models are fetched.")
    ] = None,
) -> None:
    """Fetch weights into the Hugging Face cache, so that a server starts without a download.

    HF_TOKEN opens private and gated repositories; HF_HOME is the cache's folder. Exit status: 0 if
    everything is there, 1 if a download failed and may succeed later, 2 if it can't.

    Example: raylens pull --config configs/cpu.yaml
    """
    from raylens.cli.pull import Wanted, choose_models, pull  # takes a second

    if config is None and model is None:
        _fail("pull", UsageError("expected a hub id, or --config with a Serve config file"))
    if config is None:
        raise typer.Exit(pull([Wanted(str(model), revision)], console))
    if revision is not None and model is None:
        _fail("--revision", UsageError("expected the name of one model beside it"))
    config = find_config(config)
    try:
        wanted = choose_models(read_applications(config), model, revision)
    except EnvironmentVariableError as error:
        _fail("environment", error)
    except ConfigError as error:
        _fail(config, error)
    raise typer.Exit(pull(wanted, console))


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

    Example: raylens verify Qwen/Qwen2.5-VL-3B-Instruct --dtype bfloat16 --device cuda
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
def size(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A folder, or a Hugging Face hub id, of which the configuration is downloaded."
        ),
    ],
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit on the hub.")
    ] = None,
    gpu: Annotated[
        list[float] | None,
        typer.Option(
            min=1,
            help="GiB of one GPU, as its driver tells; may be repeated; default: 24.",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Answers that run together (max_batch_size).")
    ] = 8,
    tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of an answer with its pictures and its prompt.")
    ] = 2048,
) -> None:
    """Print which share of a GPU a model needs, for each dtype.

    It is computed from the shapes in the checkpoint's configuration.

    Example: raylens size Qwen/Qwen2.5-VL-7B-Instruct --gpu 24 --gpu 80 --batch 16
    """
    from models.sizing import read_footprint  # takes seconds
    from raylens.cli.size import print_sizes

    try:
        footprint = read_footprint(checkpoint, revision)
    except (OSError, ValueError) as error:
        _fail(checkpoint, error)
    print_sizes(checkpoint, footprint, gpu or [24.0], batch, tokens)


add_commands(app)
add_watch_command(app)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _check(config: Path, host: str | None = None, port: int | None = None) -> Endpoint:
    try:
        return check_config_file(config, host, port)
    except EnvironmentVariableError as error:
        _fail("environment", error)
    except ConfigError as error:
        _fail(config, error)


def _fail(subject: object, error: Exception) -> NoReturn:
    """Print what is wrong with ``subject``, and exit with status 2."""
    console.print(f"[red]{escape(str(subject))}:[/red] {escape(str(error))}", soft_wrap=True)
    raise typer.Exit(2)
