"""``raylens jobs``: looks into the server's job queue, and changes what is in it."""

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

from raylens.cli.client import (
    DEFAULT_SERVER,
    SUCCEEDED,
    Client,
    ClientError,
    Job,
    Refused,
    check_server,
)

app = typer.Typer(
    help="Looks into the server's job queue, and changes what is in it.", no_args_is_help=True
)
errors = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
WIDTH, SHOWN_ERROR = 300, 100
"""Of a table, and of what it shows of an error: a narrower terminal breaks the lines, so that ids,
which are copied, stay whole."""
T = TypeVar("T")


def _server(given: str) -> str:
    try:
        return check_server(given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Server = Annotated[
    str,
    typer.Option(
        envvar="RAYLENS_SERVER", callback=_server, help="The server's URL.", show_default=True
    ),
]
Patience = Annotated[
    float, typer.Option(min=0, help="Seconds that a connection that fails is tried again.")
]
JobId = Annotated[str, typer.Argument(metavar="ID", show_default=False)]
JobIds = Annotated[list[str], typer.Argument(metavar="ID", show_default=False)]


@app.command("list")
def list_jobs(
    context: typer.Context,
    status: Annotated[str, typer.Option(help="States, with commas between: queued,running,…")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many jobs.")] = 20,
    as_json: Annotated[
        bool, typer.Option("--json", help="Prints a list of jobs as JSON, and no table.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    patience: Patience = 60.0,
) -> None:
    """The jobs, the newest first."""
    jobs = _ask(context, server, patience, lambda client: client.newest(limit, status))
    if as_json:
        _print_json(jobs)
    else:
        Console(width=WIDTH, highlight=False).print(_table(jobs), crop=False)


@app.command()
def show(
    context: typer.Context,
    job_id: JobId,
    server: Server = DEFAULT_SERVER,
    patience: Patience = 60.0,
) -> None:
    """Prints a job as JSON."""
    _print_json(_ask(context, server, patience, lambda client: client.get(job_id)))


@app.command()
def retry(
    context: typer.Context,
    job_ids: JobIds,
    server: Server = DEFAULT_SERVER,
    patience: Patience = 60.0,
) -> None:
    """Queues failed or canceled jobs again."""
    _ask(context, server, patience, lambda client: _each(job_ids, client.retry))


@app.command()
def cancel(
    context: typer.Context,
    job_ids: JobIds,
    server: Server = DEFAULT_SERVER,
    patience: Patience = 60.0,
) -> None:
    """Cancels jobs that have not ended."""
    _ask(context, server, patience, lambda client: _each(job_ids, client.cancel))


@app.command()
def watch(
    context: typer.Context,
    job_id: JobId,
    server: Server = DEFAULT_SERVER,
    patience: Patience = 60.0,
) -> None:
    """Tells of a job's states and progress until its end; the exit status is 0 if it succeeded."""
    last = _ask(context, server, patience, lambda client: _watched(client, job_id))
    raise typer.Exit(0 if last["status"] == SUCCEEDED else 1)


def _ask(
    context: typer.Context, server: str, patience: float, work: Callable[[Client], Awaitable[T]]
) -> T:
    """What ``work`` finds out. Tests give their transport as the context's object."""

    async def within() -> T:
        async with Client(server, patience, say=errors.print, transport=context.obj) as client:
            return await work(client)

    try:
        return asyncio.run(within())
    except ClientError as error:
        errors.print(str(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def _each(job_ids: list[str], change: Callable[[str], Awaitable[Job]]) -> None:
    """Changes them one by one; one that can't be changed doesn't keep the others."""
    refused = 0
    for job_id in job_ids:
        try:
            typer.echo(f"{job_id} {(await change(job_id))['status']}")
        except Refused as error:
            errors.print(f"{job_id}: {error}")
            refused += 1
    if refused:
        raise typer.Exit(1)


async def _watched(client: Client, job_id: str) -> Job:
    """The job at its end. A line for each change: a new connection tells again what was told
    before."""
    told, last = "", {}
    async for last in client.follow(job_id):
        line = _line(last)
        if line != told:
            typer.echo(line)
        told = line
    return last


def _line(job: Job) -> str:
    """A job's state in one line."""
    progress, error = job["progress"], job["error"]
    attempt = f", attempt {job['attempts']} of {job['max_attempts']}" if job["attempts"] > 1 else ""
    done = f", {progress['done']}/{progress['total']}" if progress else ""
    why = f": {error['message']}" if error else ""
    return f"{job['status']}{attempt}{done}{why}"


def _table(jobs: list[Job]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("id", "type", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("attempts", "created", "seconds"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("error", no_wrap=True)
    for job in jobs:
        table.add_row(*map(Text, _cells(job)))
    return table


def _cells(job: Job) -> tuple[str, ...]:
    created = datetime.fromisoformat(job["created_at"]).astimezone()
    attempts = f"{job['attempts']}/{job['max_attempts']}"
    error = " ".join(job["error"]["message"].split()) if job["error"] else ""
    error = error if len(error) <= SHOWN_ERROR else f"{error[: SHOWN_ERROR - 1]}…"
    return (
        job["id"],
        job["job_type"],
        job["status"],
        attempts,
        f"{created:%Y-%m-%d %H:%M:%S}",
        _seconds(job),
        error,
    )


def _seconds(job: Job) -> str:
    """From the first attempt's start to the end."""
    if not job["started_at"] or not job["finished_at"]:
        return ""
    taken = datetime.fromisoformat(job["finished_at"]) - datetime.fromisoformat(job["started_at"])
    return f"{taken.total_seconds():.1f}"


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
