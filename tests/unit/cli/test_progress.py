from __future__ import annotations

import io

import pytest
from rich.console import Console

from raylens.cli.progress import ProgressDisplay, Tally
from raylens.cli.results import Result


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_display_shows_the_count_the_rate_and_the_remaining_time(is_terminal: bool) -> None:
    output = io.StringIO()
    tally = Tally(4, "captioned")
    console = Console(file=output, force_terminal=is_terminal, width=100, soft_wrap=True)
    with ProgressDisplay(tally, console, period_s=0.0) as display:
        tally.add(Result("a.jpg", "a cat"))
        tally.add(Result("b.jpg", error={"code": "x", "message": "blurred"}))
        display.update()
    assert "2/4 done, 1 failed, " in output.getvalue()
    assert "/s, 0:00:00 left" in output.getvalue()
