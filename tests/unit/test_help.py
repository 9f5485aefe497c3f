"""The commands' help texts."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from labelmill.cli import COMMANDS, GROUPS, app, load_command, subcommands


@pytest.mark.parametrize("name", COMMANDS)
def test_paragraphs_fill_their_lines_whatever_the_terminals_width(name: str) -> None:
    command = load_command(name)
    for each in (command, *getattr(command, "commands", {}).values()):
        for paragraph in each.help.split("\n\n"):
            assert paragraph
            # each item of a list has a line
            assert all(line.startswith("- ") for line in paragraph.split("\n")[1:])


def test_a_group_of_commands_has_an_example_as_they_have() -> None:
    for name in ("runs", "db"):
        assert load_command(name).epilog.startswith("Examples:"), name


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("register", "Did you mean 'labelmill models register'?"),
        (
            "show",
            "'labelmill datasets show' or 'labelmill models show' or 'labelmill runs show'?",
        ),
        ("upgrade", "Did you mean 'labelmill db upgrade'?"),
        ("submi", "Did you mean 'submit'?"),
    ],
)
def test_a_command_of_a_group_is_suggested_with_its_group(typed: str, meant: str) -> None:
    done = CliRunner().invoke(app, [typed], env={"COLUMNS": "200"})
    assert (done.exit_code, meant in done.stderr) == (2, True)


def test_the_groups_are_those_with_commands_of_their_own() -> None:
    assert set(GROUPS) == {name for name in COMMANDS if subcommands(name)}
