"""``raylens watch``: the command line of :mod:`raylens.cli.watch`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from raylens.cli import jobs
from raylens.cli.client import DEFAULT_SERVER, Client
from raylens.cli.errors import UsageError
from raylens.core.errors import InvalidRequest

_WHAT = "What to ask"
_HOW = "How often"
_OUT = "Output"
_EVENTS = "Events"


def watch(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A video, a folder of pictures, rtsp://…, http://… (MJPEG, or a picture),"
            " camera:0, or - for MJPEG on standard input.",
            show_default=False,
        ),
    ],
    detect: Annotated[
        str | None,
        typer.Option(help="Find the boxes of this object.", rich_help_panel=_WHAT),
    ] = None,
    point: Annotated[
        str | None,
        typer.Option(help="Find the centers of this object.", rich_help_panel=_WHAT),
    ] = None,
    ask: Annotated[
        str | None,
        typer.Option(
            help="Ask this. Events are those of answers that begin with yes.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    caption: Annotated[
        bool,
        typer.Option("--caption", help="Describe the picture: the default.", rich_help_panel=_WHAT),
    ] = False,
    length: Annotated[
        Literal["short", "normal", "long"] | None,
        typer.Option(help="Length of captions.", rich_help_panel=_WHAT),
    ] = None,
    frames: Annotated[
        int,
        typer.Option(
            min=1,
            max=16,
            help="Ask about the last N frames that are due, as about a video; for models that take"
            " videos.",
            rich_help_panel=_WHAT,
        ),
    ] = 1,
    max_objects: Annotated[
        int | None,
        typer.Option(help="Maximum number of boxes or points.", rich_help_panel=_WHAT),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Name of the model; the server chooses by default.", rich_help_panel=_WHAT
        ),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            help="Ask about every Nth frame. Default: of a folder each, of a live source the newest"
            " whenever there is an answer.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            help="Ask about so many frames a second. Default: 2 of a video file.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    in_flight: Annotated[
        int,
        typer.Option(min=1, max=64, help="Questions about a file at a time.", rich_help_panel=_HOW),
    ] = 4,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Watch a folder for new pictures.", rich_help_panel=_HOW),
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(help="End a live source after so long.", rich_help_panel=_HOW),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The annotated video: .mp4.", rich_help_panel=_OUT),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="File for all answers as JSON lines; - for standard output, the default if there"
            " is no other output.",
            rich_help_panel=_OUT,
        ),
    ] = None,
    show: Annotated[
        bool,
        typer.Option("--show", help="Show the annotated video in a window.", rich_help_panel=_OUT),
    ] = False,
    tracking: Annotated[
        bool,
        typer.Option(
            "--tracking/--no-tracking",
            help="Boxes and points follow the picture between two answers.",
            rich_help_panel=_OUT,
        ),
    ] = True,
    events: Annotated[
        Path | None,
        typer.Option(
            help="File for what starts and ends, as JSON lines; - for standard output.",
            rich_help_panel=_EVENTS,
        ),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            help="URL that gets the events, signed with RAYLENS_WEBHOOK_SECRET.",
            rich_help_panel=_EVENTS,
        ),
    ] = None,
    enter: Annotated[
        int | None,
        typer.Option(
            help="Answers in a row that make a start. Default: 2.", rich_help_panel=_EVENTS
        ),
    ] = None,
    leave: Annotated[
        int | None,
        typer.Option(
            help="Answers in a row that make an end. Default: 2.", rich_help_panel=_EVENTS
        ),
    ] = None,
    min_count: Annotated[
        int | None,
        typer.Option(
            help="Objects that a frame must have to count. Default: 1.", rich_help_panel=_EVENTS
        ),
    ] = None,
    server: jobs.ServerOption = DEFAULT_SERVER,
    patience: jobs.PatienceOption = 60.0,
) -> None:
    """Watch a video or a camera: boxes and answers on its frames, and events.

    Of a file every frame counts, and two runs give the same result. Of a live source the newest
    frame wins, and it is connected to again if it is lost. Ctrl-C ends the watch; its files are
    then complete.

    The exit status is 1 if an answer failed, the video is damaged, an event was not delivered, a
    live source gave no frame or the watch had to stop, 2 if the arguments are invalid, the source
    can't be watched or the server refuses the question, and 130 after Ctrl-C.

    Examples:

    raylens watch door.mp4 --detect person --out annotated.mp4 --events events.jsonl

    raylens watch rtsp://user:password@10.0.0.7/live --ask 'Is the door open?' --webhook https://…

    raylens watch camera:0 --detect cup --fps 2 --results -
    """
    # These imports take a second.
    from raylens.cli.watch.plan import Outputs, Plan, choose_fps, make_settings
    from raylens.cli.watch.run import watch as run
    from raylens.realtime.sources.address import parse_source

    fields = context.obj or {}

    def connect(notify: Callable[[str], None]) -> Client:
        return Client(server, patience, waits_while_busy=True, notify=notify, **fields)

    try:
        address = parse_source(source)
        fps = choose_fps(address, follow, frames, every, fps)
        settings = make_settings(
            detect,
            point,
            ask,
            caption,
            caption_length=length,
            frames=frames,
            max_objects=max_objects,
            model=model,
            inference_interval=1 if every is None else every,
            tracking=tracking,
            event_enter=enter,
            event_leave=leave,
            event_min_count=min_count,
        )
        has_output = any((out, events, results, webhook, show))
        outputs = Outputs(out, events, results if has_output else Path("-"), webhook, show)
        plan = Plan(address, settings, outputs, fps, follow, seconds, in_flight)
        status = run(plan, connect, jobs.stderr)
    except UsageError as error:
        jobs.stderr.print(str(error))
        raise typer.Exit(2) from None
    except InvalidRequest as error:
        jobs.stderr.print(error.message)
        raise typer.Exit(2) from None
    raise typer.Exit(status)


def add_command(app: typer.Typer) -> None:
    """Add the command to the command line."""
    paragraphs = inspect.cleandoc(watch.__doc__ or "").split("\n\n")
    help_text = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
    app.command(help=help_text)(watch)
