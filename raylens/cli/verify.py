"""The table of ``raylens verify``."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.verify.run import Report

_YES_OR_NO = {True: "yes", False: "no", None: ""}


def print_report(report: Report) -> None:
    commit = f" at {report.commit}" if report.commit else ""
    table = Table(
        "question",
        "answer",
        "fits the picture",
        "reference",
        "same",
        title=f"{report.checkpoint}{commit}",
    )
    for line in report.lines:
        table.add_row(
            escape(line.question),
            escape(line.answer),
            _YES_OR_NO[line.is_right],
            escape(line.reference),
            _YES_OR_NO[line.is_same],
        )
    console = Console()
    console.print(table)
    console.print("verified" if report.verified else "not verified")
