"""`labelmill doctor`: find out what is wrong, and how to fix it."""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import asdict, replace

import typer
from rich.text import Text

from jobs.settings import Settings
from jobs.text import storable
from labelmill.commands.options import AsJson
from labelmill.console.terminal import Console, ExitCode, examples, print_json, printable_lines, report_errors
from labelmill.operations.doctor import Finding, Level, examine

app = typer.Typer(add_completion=False)

_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


@app.command(epilog=examples("labelmill doctor", "labelmill doctor --json"))
@report_errors
def doctor(
    as_json: AsJson = False,
) -> None:
    """Check settings, broker, ledger, store, models and jobs; say what is wrong, and what to type.

    Changes nothing, except that it writes and removes one small object in the store, one key in the broker
    and 4 MiB on the database's disk. An area that does not answer within 20 seconds is a problem. No password
    is printed. Exit code 0: no problem, though perhaps warnings. 1: there is a problem. 2: a setting is
    malformed, and nothing was checked.
    """
    findings = [
        (area, _storable(finding)) for area, found in examine(Settings.load()).items() for finding in found
    ]
    levels = Counter(finding.level for _, finding in findings)
    if as_json:
        print_json(
            {
                "well": not levels[Level.PROBLEM],
                "checks": len(findings),
                "warnings": levels[Level.WARNING],
                "problems": levels[Level.PROBLEM],
                "findings": [{"area": area, **asdict(finding)} for area, finding in findings],
            }
        )
    else:
        _print_findings(findings, levels)
    raise SystemExit(ExitCode.FAILED if levels[Level.PROBLEM] else ExitCode.OK)


def _storable(finding: Finding) -> Finding:
    """Return the finding as valid UTF-8: a path in it can have any bytes."""
    return replace(finding, what=storable(finding.what), fix=finding.fix and storable(finding.fix))


def _print_findings(findings: list[tuple[str, Finding]], levels: Counter[Level]) -> None:
    """Print a line for each finding, and its fix below it.

    On a terminal, long findings are wrapped and indented. Fixes are not, because people copy them.
    """
    out = Console(highlight=False, soft_wrap=True)
    for area, finding in findings:
        level = Text(f"{finding.level:<8}", style=_COLOURS[finding.level])
        what = f"{area:<9}{printable_lines(finding.what)}"
        if out.is_terminal:
            what = textwrap.fill(
                what, out.width - len(level), subsequent_indent=" " * 17, break_long_words=False
            )
        out.print(level.append(what, style="default not bold"))
        if finding.fix is not None:
            out.print(Text(f"{'':<17}fix: {printable_lines(finding.fix)}"))
    problems, warnings = levels[Level.PROBLEM], levels[Level.WARNING]
    out.print(Text(f"{len(findings)} checks; problems: {problems}, warnings: {warnings}"))
