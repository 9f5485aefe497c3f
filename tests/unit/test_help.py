"""The help of the commands."""

from __future__ import annotations

import pytest

from labelmill.cli import COMMANDS, load_command


@pytest.mark.parametrize("name", COMMANDS)
def test_paragraphs_fill_their_lines_whatever_the_terminals_width(name: str) -> None:
    command = load_command(name)
    for each in (command, *getattr(command, "commands", {}).values()):
        for paragraph in each.help.split("\n\n"):
            assert paragraph
            assert "\n" not in paragraph


def test_a_group_of_commands_has_an_example_as_they_have() -> None:
    for name in ("runs", "db"):
        assert load_command(name).epilog.startswith("Examples:"), name
