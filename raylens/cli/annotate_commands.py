"""``raylens caption``, ``query`` and ``detect``: the same request about thousands of pictures."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from raylens.cli import jobs
from raylens.cli.annotate import Arguments, annotate
from raylens.cli.client import DEFAULT_SERVER, Client
from raylens.cli.errors import UsageError
from raylens.cli.pictures import SUFFIXES
from raylens.cli.results import Format
from raylens.cli.tasks import caption_task, detect_task, query_task

EXIT_STATUS = """The exit status is 1 if a picture failed or the run had to stop,
2 if the arguments are invalid or the server refuses them, and 130 after Ctrl-C."""

Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="FOLDER_OR_FILE", help="Pictures, and folders of pictures.", show_default=False
    ),
]
OnePath = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER_OR_FILE", help="A folder of pictures, or a picture.", show_default=False
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="File for the results, one record per picture; - for standard output. "
        "Pictures that already have a record are skipped.",
        show_default=False,
    ),
]
TextFormat = Annotated[
    Literal["jsonl", "txt", "csv"] | None,
    typer.Option(
        "--format",
        help="Format of --out; txt writes a text file beside each picture instead. "
        "By default csv if --out ends in .csv, otherwise jsonl.",
    ),
]
BoxFormat = Annotated[
    Literal["jsonl", "csv", "coco", "yolo"] | None,
    typer.Option(
        "--format",
        help="Format of --out; yolo writes a folder with data.yaml, labels, and links to the "
        "pictures. By default csv if --out ends in .csv, coco if it ends in .json, otherwise "
        "jsonl.",
    ),
]
Model = Annotated[
    str | None, typer.Option(help="Name of the model; the server chooses by default.")
]
InFlight = Annotated[int, typer.Option(min=1, max=256, help="Maximum number of jobs in flight.")]
Recursive = Annotated[bool, typer.Option(help="Search subfolders too.")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Retry pictures that failed in an earlier run.")
]
Redo = Annotated[
    bool,
    typer.Option(
        "--redo",
        help="Remove the results of earlier runs, and begin again. It is needed if they were made "
        "by another request, such as with another --model.",
    ),
]


def caption(
    context: typer.Context,
    paths: Paths,
    out: Out = None,
    file_format: TextFormat = None,
    prompt: Annotated[
        str | None, typer.Option(help="Question to ask about each picture instead of a caption.")
    ] = None,
    length: Annotated[
        Literal["short", "normal", "long"] | None, typer.Option(help="Length of the captions.")
    ] = None,
    model: Model = None,
    in_flight: InFlight = 32,
    recursive: Recursive = True,
    retry_failed: RetryFailed = False,
    redo: Redo = False,
    server: jobs.ServerOption = DEFAULT_SERVER,
    patience: jobs.PatienceOption = 60.0,
) -> None:
    """Caption thousands of pictures through the server's job queue."""
    task = caption_task(prompt or None, length, model or None)
    arguments = Arguments(
        tuple(paths), task, out, _parse(file_format), recursive, in_flight, retry_failed, redo
    )
    _run(context, arguments, server, patience)


def query(
    context: typer.Context,
    path: OnePath,
    question: Annotated[
        str,
        typer.Argument(
            metavar="QUESTION", help="Question to ask about each picture.", show_default=False
        ),
    ],
    out: Out = None,
    file_format: TextFormat = None,
    model: Model = None,
    in_flight: InFlight = 32,
    recursive: Recursive = True,
    retry_failed: RetryFailed = False,
    redo: Redo = False,
    server: jobs.ServerOption = DEFAULT_SERVER,
    patience: jobs.PatienceOption = 60.0,
) -> None:
    """Ask the same question about thousands of pictures through the server's job queue."""
    if not question.strip():
        raise typer.BadParameter("it is empty", param_hint="QUESTION")
    task = query_task(question, model or None)
    arguments = Arguments(
        (path,), task, out, _parse(file_format), recursive, in_flight, retry_failed, redo
    )
    _run(context, arguments, server, patience)


def detect(
    context: typer.Context,
    path: OnePath,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Names of the objects to find, in order.", show_default=False
        ),
    ],
    out: Out = None,
    file_format: BoxFormat = None,
    max_objects: Annotated[
        int | None,
        typer.Option(
            min=1, help="Maximum number of boxes per name and picture.", show_default=False
        ),
    ] = None,
    model: Model = None,
    in_flight: InFlight = 32,
    recursive: Recursive = True,
    retry_failed: RetryFailed = False,
    redo: Redo = False,
    server: jobs.ServerOption = DEFAULT_SERVER,
    patience: jobs.PatienceOption = 60.0,
) -> None:
    """Find objects in thousands of pictures through the server's job queue.

    The classes of a COCO or YOLO dataset are the names, in the order of the command. Pictures
    without any of the objects are part of the dataset; pictures that failed are not.
    """
    names = [name.strip() for name in names]
    for name in names:
        if Path(name).suffix.lower() in SUFFIXES and os.path.exists(name):
            raise typer.BadParameter(
                f"{name} is a picture; give one folder or picture, and then the names of objects",
                param_hint="NAME",
            )
    if not all(names):
        raise typer.BadParameter("a name is empty", param_hint="NAME")
    if len(set(names)) < len(names):
        raise typer.BadParameter("a name is given twice", param_hint="NAME")
    task = detect_task(names, max_objects, model or None)
    arguments = Arguments(
        (path,), task, out, _parse(file_format), recursive, in_flight, retry_failed, redo
    )
    _run(context, arguments, server, patience)


_EXAMPLES: dict[Any, tuple[str, ...]] = {
    caption: (
        "raylens caption pictures/ --out captions.jsonl",
        "raylens caption pictures/ --format txt --length short",
        "raylens caption pictures/ --out captions.csv --prompt 'What is the weather?'",
        "raylens caption pictures/ --out captions.jsonl --length long --redo",
    ),
    query: (
        "raylens query pictures/ 'Is the door open?' --out answers.csv",
        "raylens query pictures/ 'How many people are there?' --out - | jq .answer",
    ),
    detect: (
        "raylens detect pictures/ person car --out boxes.jsonl",
        "raylens detect pictures/ person 'traffic light' --format coco --out annotations.json",
        "raylens detect pictures/ person car --format yolo --out dataset/",
    ),
}


def _parse(file_format: str | None) -> Format | None:
    return Format(file_format) if file_format else None


def _run(context: typer.Context, arguments: Arguments, server: str, patience: float) -> None:
    """Run a command, and exit with its status. Tests pass arguments of the client as ``obj``."""
    fields = context.obj or {}

    def connect(notify: Callable[[str], None]) -> Client:
        return Client(server, patience, waits_while_busy=True, notify=notify, **fields)

    try:
        status = annotate(arguments, connect, jobs.stderr)
    except UsageError as error:
        jobs.stderr.print(str(error))
        raise typer.Exit(2) from None
    raise typer.Exit(status)


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command, examples in _EXAMPLES.items():
        paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
        paragraphs += [
            "If a run is interrupted, the same command resumes it.",
            EXIT_STATUS,
            "Examples:",
            *examples,
        ]
        help_text = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
        app.command(help=help_text)(command)
