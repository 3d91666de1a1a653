from __future__ import annotations

import io

from rich.console import Console

from raylens.cli.watch.progress import LINE_PERIOD_S, Progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def watch(progress: Progress, clock: Clock, seconds: float) -> None:
    """Show ten frames a second, with an answer to every fifth."""
    for number in range(round(seconds * 10)):
        if number % 5 == 0:
            progress.add_result({"objects": [{}, {}], "age_ms": 87.4})
        progress.add_frame(number / 10)
        clock.now += 0.1


def test_lines_come_now_and_then_if_there_is_no_terminal() -> None:
    clock, output = Clock(), io.StringIO()
    console = Console(file=output, width=200)
    with Progress("camera", console, True, clock) as progress:
        watch(progress, clock, 2.5 * LINE_PERIOD_S)
        progress.events = 1
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    expected = "camera: 0:00:10, 10.0 frames/s, 2.0 answers/s, 87 ms old, 2 objects"
    assert lines[0] == expected
    assert progress.summary() == (
        "camera: 250 frames, 50 answers, 0 failed, 1 event; 10.0 frames/s, 2.0 answers/s"
    )


def test_a_terminal_has_one_line_that_changes() -> None:
    clock, output = Clock(), io.StringIO()
    console = Console(file=output, width=120, force_terminal=True)
    with Progress("camera", console, False, clock) as progress:
        watch(progress, clock, 3)
        progress.add_result({"text": "a [bold]cat[/bold]\nand " + "x" * 90})
        assert progress.line().endswith("“a [bold]cat[/bold] and " + "x" * 37 + "…”")
        assert "ms old" not in progress.line()
    assert "\x1b" in output.getvalue()
