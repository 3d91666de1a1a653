"""``raylens jobs``: commands that inspect and change the server's job queue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raylens.cli.client import DEFAULT_SERVER, SUCCEEDED, Client, Job, check_server
from raylens.cli.errors import ClientError, StatusError

app = typer.Typer(help="Inspect and change the server's job queue.", no_args_is_help=True)
stderr = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
TABLE_WIDTH = 300
"""Width of the table in characters. A narrower terminal wraps the lines instead of truncating the
ids, which users copy."""
MAX_ERROR_LENGTH = 100
"""Characters of an error message in the table."""
T = TypeVar("T")


def _parse_server(server: str) -> str:
    try:
        return check_server(server)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


ServerOption = Annotated[
    str,
    typer.Option(
        envvar="RAYLENS_SERVER",
        callback=_parse_server,
        help="URL of the server.",
        show_default=True,
    ),
]
PatienceOption = Annotated[
    float, typer.Option(min=0, help="Seconds to keep retrying a request that fails.")
]
JobId = Annotated[str, typer.Argument(metavar="ID", show_default=False)]
JobIds = Annotated[list[str], typer.Argument(metavar="ID", show_default=False)]


@app.command("list")
def list_jobs(
    context: typer.Context,
    status: Annotated[
        str, typer.Option(help="Only jobs in these states, separated by commas: queued,running,…")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of jobs.")] = 20,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the jobs as a JSON list instead of a table.")
    ] = False,
    server: ServerOption = DEFAULT_SERVER,
    patience: PatienceOption = 60.0,
) -> None:
    """List jobs, newest first.

    Example: raylens jobs list --status failed --limit 100
    """
    jobs = _run(context, server, patience, lambda client: client.list_newest(limit, status))
    if as_json:
        _print_json(jobs)
    else:
        Console(width=TABLE_WIDTH, highlight=False).print(_make_table(jobs), crop=False)


@app.command()
def show(
    context: typer.Context,
    job_id: JobId,
    server: ServerOption = DEFAULT_SERVER,
    patience: PatienceOption = 60.0,
) -> None:
    """Print a job as JSON."""
    _print_json(_run(context, server, patience, lambda client: client.get(job_id)))


@app.command()
def retry(
    context: typer.Context,
    job_ids: JobIds,
    server: ServerOption = DEFAULT_SERVER,
    patience: PatienceOption = 60.0,
) -> None:
    """Queue failed or canceled jobs again."""
    _run(context, server, patience, lambda client: _change_jobs(job_ids, client.retry))


@app.command()
def cancel(
    context: typer.Context,
    job_ids: JobIds,
    server: ServerOption = DEFAULT_SERVER,
    patience: PatienceOption = 60.0,
) -> None:
    """Cancel jobs that have not ended."""
    _run(context, server, patience, lambda client: _change_jobs(job_ids, client.cancel))


@app.command()
def delete(
    context: typer.Context,
    job_ids: JobIds,
    server: ServerOption = DEFAULT_SERVER,
    patience: PatienceOption = 60.0,
) -> None:
    """Cancel jobs, or remove those that have ended, with their pictures.

    A job that this command cancels is not removed as well, even if a request has to be repeated.
    """
    _run(context, server, patience, lambda client: _change_jobs(job_ids, client.delete))


@app.command()
def watch(
    context: typer.Context,
    job_id: JobId,
    server: ServerOption = DEFAULT_SERVER,
    patience: PatienceOption = 60.0,
) -> None:
    """Print a job's states and progress until it ends.

    The exit status is 0 if the job succeeded, 1 otherwise.
    """
    job = _run(context, server, patience, lambda client: _watch(client, job_id))
    raise typer.Exit(0 if job["status"] == SUCCEEDED else 1)


def _run(
    context: typer.Context, server: str, patience: float, work: Callable[[Client], Awaitable[T]]
) -> T:
    """Return the result of ``work``; exit with status 1 if the client raises an error.

    Tests pass arguments of the client as ``context.obj``.
    """

    async def run_with_client() -> T:
        arguments = context.obj or {}
        async with Client(server, patience, notify=stderr.print, **arguments) as client:
            return await work(client)

    try:
        return asyncio.run(run_with_client())
    except ClientError as error:
        stderr.print(str(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def _change_jobs(job_ids: list[str], change: Callable[[str], Awaitable[Job | None]]) -> None:
    """Change the jobs one by one, each once; ``change`` returns None if it has removed the job.

    Go on after a refusal, and exit with status 1 at the end.
    """
    refusals = 0
    for job_id in dict.fromkeys(job_ids):
        try:
            job = await change(job_id)
        except StatusError as error:
            stderr.print(f"{job_id}: {error}")
            refusals += 1
        else:
            typer.echo(f"{job_id} {job['status'] if job else 'removed'}")
    if refusals:
        raise typer.Exit(1)


async def _watch(client: Client, job_id: str) -> Job:
    """Print a line for each change of the job, and return the job at its end.

    A new connection repeats the current state, so a line equal to the last one is not printed.
    """
    job: Job = {}
    last_line = ""
    async for job in client.follow(job_id):
        line = _describe(job)
        if line != last_line:
            typer.echo(line)
        last_line = line
    return job


def _describe(job: Job) -> str:
    """Return a job's state in one line."""
    line: str = job["status"]
    if job["attempts"] > 1:
        line += f", attempt {job['attempts']} of {job['max_attempts']}"
    if job["progress"]:
        line += f", {job['progress']['done']}/{job['progress']['total']}"
    if job["error"]:
        line += f": {job['error']['message']}"
    return line


def _make_table(jobs: list[Job]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("id", "type", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("attempts", "created", "seconds"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("error", no_wrap=True)
    for job in jobs:
        table.add_row(*map(Text, _format_cells(job)))
    return table


def _format_cells(job: Job) -> tuple[str, ...]:
    created = datetime.fromisoformat(job["created_at"]).astimezone()
    return (
        job["id"],
        job["job_type"],
        job["status"],
        f"{job['attempts']}/{job['max_attempts']}",
        f"{created:%Y-%m-%d %H:%M:%S}",
        _format_seconds(job),
        _shorten_error(job),
    )


def _format_seconds(job: Job) -> str:
    """Return the time from the start of the first attempt to the end; empty until then."""
    if not job["started_at"] or not job["finished_at"]:
        return ""
    started = datetime.fromisoformat(job["started_at"])
    finished = datetime.fromisoformat(job["finished_at"])
    return f"{(finished - started).total_seconds():.1f}"


def _shorten_error(job: Job) -> str:
    """Return the error message on one line of at most ``MAX_ERROR_LENGTH`` characters."""
    if not job["error"]:
        return ""
    message = " ".join(job["error"]["message"].split())
    if len(message) <= MAX_ERROR_LENGTH:
        return message
    return f"{message[: MAX_ERROR_LENGTH - 1]}…"


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
